//! Layers and uppers as the OCI image specification has them.

/// The layer tar.
pub mod tar {
    use std::io::Write;
    use std::os::fd::BorrowedFd;

    use crate::error::{Act, Result};

    /// Writes a tree as one.
    ///
    /// # Errors
    /// [`crate::Error::Act`].
    pub fn write(dir: BorrowedFd<'_>, to: &mut impl Write) -> Result<()> {
        crate::archive::pack(&dir.try_clone_to_owned().act("copy", "a descriptor")?, to)
    }
}
