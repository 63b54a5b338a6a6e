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
    for path in [paths::init(), paths::shell()] {
        let path = PathBuf::from(path);
        match unfit(&path) {
            None => report.ok(SUBJECT, format!("{} is there, and static", path.display())),
            Some(why) => {
                report.error(SUBJECT, format!("{}: {why}", path.display()), "run `make install` again")
            }
        }
    }
    match module() {
        Some(path) => report.ok(SUBJECT, format!("{} is there", path.display())),
        None => report.error(
            SUBJECT,
            "pam_ojail.so is in none of PAM's directories",
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
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return Some("can be changed by others than root".into());
    }
    if meta.mode() & 0o111 != 0o111 {
        return Some(format!("cannot be executed by everybody (mode {:04o})", meta.mode() & 0o7777));
    }
    let mut head = Vec::new();
    if fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head)).is_err() {
        return Some("cannot be read".into());
    }
    is_dynamic(&head)
        .then(|| "needs shared libraries, which a jail may not have; build it with `make build`".into())
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

fn module() -> Option<PathBuf> {
    let mut places = Vec::new();
    for lib in SECURITY {
        places.push(Path::new(lib).join("security"));
        for entry in fs::read_dir(lib).into_iter().flatten().flatten() {
            places.push(entry.path().join("security"));
        }
    }
    places.into_iter().map(|place| place.join("pam_ojail.so")).find(|path| path.is_file())
}
