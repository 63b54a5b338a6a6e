//! A tree as the tar of one layer, as the image specification of OCI has it (image-spec, layer.md), and back.
//!
//! On disk a tree is what overlayfs with `userxattr` has as an upper or a lower: a whiteout is a character device 0/0, and an opaque
//! directory has `user.overlay.opaque=y`. In the tar the first is an empty file `.wh.NAME`, the second has one called
//! `.wh..wh..opq` in it.
//!
//! What [`write()`] writes is canonical: the same tree gives the same bytes, on whatever file system it lies, so that its SHA-256 can
//! stand for the tree. In detail:
//!
//! * POSIX tar (`ustar`); an extended header (`x`, called `././@PaxHeader`, its records sorted) only for what does not fit: a name or
//!   the target of a link that is longer than 100 bytes or not ASCII, an id above 2097151, 8 GiB or more, a time before 1970, and
//!   extended attributes, as `SCHILY.xattr.NAME` (`%` and `=` in a name as `%25` and `%3D`, which is how GNU tar has them).
//! * The root is `./`; below it, depth first, the names of a directory are in the order of their bytes. `.wh..wh..opq` comes before
//!   all else of its directory.
//! * Owners are numbers, times whole seconds. Whiteouts have mode, owner and time 0.
//! * A file with several names is where the first of them is; the others are hard links to that. Its content is there in full, also
//!   where it has holes.
//! * Extended attributes are all in it, access lists (`system.posix_acl_*`) and capabilities too, but for overlayfs' own
//!   (`user.overlay.*`, `trusted.overlay.*`) and, of `security.*`, all but `security.capability`: labels and signatures are for
//!   the host that made them.
//! * Left out are sockets, which mean nothing without who listens, and the flags of chattr(1), for which no tar has a place.
//!
//! [`read()`] takes what others write as well (names of GNU tar, trees without entries for directories), and refuses what no layer
//! needs: see there.

mod place;
mod read;
mod write;

pub use read::{Allowance, Marks, Taken, Tree, read};
pub use write::{Written, write, write_in_parts};

/// Before the name of what is hidden: the whiteout is an empty file of both.
const WHITEOUT: &[u8] = b".wh.";

/// In a directory that hides those of its name in the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Before the name of an extended attribute, in an extended header.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The most that an extended header may have, in bytes: what Go's archive/tar takes (`maxSpecialFileSize`), and so every registry's
/// usual reader.
const HEADER: u64 = 1 << 20;

/// The most that all holes of a tree may have, in bytes: a tar has them in full, and a user can make one of 8 EiB for nothing.
const HOLES: u64 = 1 << 40;

/// A block of a tar, in bytes.
const BLOCK: usize = 512;

/// Whether an extended attribute is of the tree, and not of overlayfs or of the host.
fn belongs(name: &[u8]) -> bool {
    // What a user called `user.overlay.…` is stored by this name (docs/facts.md).
    if name.starts_with(b"user.overlay.overlay.") {
        return true;
    }
    let own = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.");
    !own && (!name.starts_with(b"security.") || name == b"security.capability")
}

/// A name as a sentence can have it: a stranger chose it.
fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).escape_debug().take(300).collect();
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests;
