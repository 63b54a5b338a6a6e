//! Are ojail's own parts where they belong, and fit for their place?

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Report;
use crate::paths;

const SUBJECT: &str = "programs";

/// Where PAM looks for modules: the multiarch directory of Debian, and the plain ones.
const SECURITY: [&str; 4] = ["/usr/lib", "/lib", "/usr/lib64", "/lib64"];

pub(super) fn check(report: &mut Report) {
    for path in [paths::init(), paths::shell(), paths::probe()] {
        let path = PathBuf::from(path);
        match unfit(&path) {
            None => report.ok(SUBJECT, format!("{} is there, and static", path.display())),
            Some(why) => {
                report.error(SUBJECT, format!("{}: {why}", path.display()), "run `make install` again")
            }
        }
    }
    match module() {
        Some(path) => match fs::metadata(&path) {
            // PAM loads it into root's processes.
            Ok(meta) if is_anybodys(&meta) => report.error(
                SUBJECT,
                format!("{} can be changed by others than root", path.display()),
                format!("chown root: {0} && chmod 0644 {0}", path.display()),
            ),
            Ok(_) => report.ok(SUBJECT, format!("{} is there", path.display())),
            Err(e) => report.error(SUBJECT, format!("{}: {e}", path.display()), "run `make install` again"),
        },
        None => report.error(
            SUBJECT,
            "pam_ojail.so is not where PAM's own modules are",
            "run `make install` again, with SECUREDIR=… if PAM looks elsewhere",
        ),
    }
    // chsh, and services such as FTP servers, take only what is listed there.
    let listed = fs::read_to_string("/etc/shells").unwrap_or_default();
    if !listed.lines().any(|line| line.trim() == paths::shell()) {
        report.warn(
            SUBJECT,
            format!("{} is not in /etc/shells", paths::shell()),
            format!("add-shell {}", paths::shell()),
        );
    }
}

/// Why a static program of ours cannot do its work.
fn unfit(path: &Path) -> Option<String> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) => return Some(e.to_string()),
    };
    if is_anybodys(&meta) {
        return Some("can be changed by others than root".into());
    }
    if meta.mode() & 0o111 != 0o111 {
        return Some(format!("cannot be executed by everybody (mode {:04o})", meta.mode() & 0o7777));
    }
    let mut head = Vec::new();
    if fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head)).is_err() {
        return Some("cannot be read".into());
    }
    if !head.starts_with(b"\x7fELF") {
        return Some("is not a program (no ELF file)".into());
    }
    is_dynamic(&head)
        .then(|| "needs shared libraries, which a jail may not have; build it with `make build`".into())
}

/// Whether others than root can write it.
fn is_anybodys(meta: &fs::Metadata) -> bool {
    meta.uid() != 0 || meta.mode() & 0o022 != 0
}

/// Whether an ELF file asks for an interpreter (a program header of type PT_INTERP, elf(5)).
fn is_dynamic(head: &[u8]) -> bool {
    let half = |at: usize| head.get(at..at + 2).map_or(0, |b| usize::from(u16::from_ne_bytes([b[0], b[1]])));
    // 64-bit files only, which is all that is built: e_phoff, e_phentsize, e_phnum.
    let Some(table) = head.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes) else {
        return true;
    };
    let table = usize::try_from(table).unwrap_or(usize::MAX);
    let (size, count) = (half(54), half(56));
    (0..count).any(|number| {
        let at = table.saturating_add(number * size);
        head.get(at..at.saturating_add(4)) == Some(&3u32.to_ne_bytes()[..])
    })
}

/// Our module, in the directory from which PAM takes its own.
fn module() -> Option<PathBuf> {
    let mut places = Vec::new();
    for lib in SECURITY {
        places.push(Path::new(lib).join("security"));
        for entry in fs::read_dir(lib).into_iter().flatten().flatten() {
            places.push(entry.path().join("security"));
        }
    }
    places.retain(|place| place.join("pam_unix.so").is_file());
    places.into_iter().map(|place| place.join("pam_ojail.so")).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a 64-bit ELF file with program headers of these types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut head = b"\x7fELF".to_vec();
        head.resize(64, 0);
        head[32..40].copy_from_slice(&64u64.to_ne_bytes());
        head[54..56].copy_from_slice(&56u16.to_ne_bytes());
        head[56..58].copy_from_slice(&u16::try_from(types.len()).unwrap().to_ne_bytes());
        for kind in types {
            head.extend(kind.to_ne_bytes());
            head.resize(head.len() + 52, 0);
        }
        head
    }

    #[test]
    fn a_program_with_an_interpreter_is_dynamic() {
        assert!(is_dynamic(&elf(&[6, 3, 1])));
        assert!(!is_dynamic(&elf(&[1, 1, 2])));
        assert!(is_dynamic(b"\x7fELF"), "cut short: nothing to rely on");
    }
}
