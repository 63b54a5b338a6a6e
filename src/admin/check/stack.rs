//! The session stack of a PAM service, as libpam reads it. Pure: texts in, entries out.
//!
//! pam.conf(5) leaves much open. What is here was tried with libpam 1.5.2 and 1.7.0; where the two differ, the text is
//! called ambiguous instead of read in one way.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Where services are looked for, in this order; included files are looked for in the first only.
const PLACES: [&str; 2] = ["/etc/pam.d", "/usr/lib/pam.d"];

/// How a file is read; tests have none.
pub(super) type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// One step of a session stack, with `include` and `@include` followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Module {
        /// In lower case: `required`, or `[success=ok default=bad]`.
        control: String,
        /// The file's name without its directory.
        module: String,
    },
    /// A stack of its own: what ends it ends nothing around it, and a jump counts it as one.
    Substack(Vec<Entry>),
}

/// What keeps a stack from being what it seems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// PAM refuses every session, or nobody can tell what it does. The sentence and the mend.
    Broken(String, &'static str),
    /// This file could not be read, so the stack is not known.
    Unread(String),
}

#[derive(Debug, Default)]
pub(super) struct Stack {
    /// The file that it begins in.
    pub(super) file: PathBuf,
    pub(super) entries: Vec<Entry>,
    pub(super) troubles: Vec<Trouble>,
}

/// The session stack of a service. `None`: no file has its name, and PAM takes the stack of `other`.
pub(super) fn session(service: &str, read: Read) -> Option<Stack> {
    let file = PLACES.iter().map(|place| Path::new(place).join(service)).find(|path| {
        // A file that cannot be read is there; `add` says why it cannot.
        !matches!(read(path), Err(e) if e.kind() == ErrorKind::NotFound)
    })?;
    let mut reader = Reader { read, open: Vec::new(), troubles: Vec::new() };
    let mut entries = Vec::new();
    reader.add(&file, &mut entries);
    if entries.is_empty() && reader.troubles.is_empty() && service != "other" {
        // A service without any session line gets the session lines of `other`.
        return session("other", read).or(Some(Stack { file, ..Stack::default() }));
    }
    Some(Stack { file, entries, troubles: reader.troubles })
}

struct Reader<'a> {
    read: Read<'a>,
    /// The files that are being read, to notice a circle.
    open: Vec<PathBuf>,
    troubles: Vec<Trouble>,
}

impl Reader<'_> {
    fn add(&mut self, file: &Path, entries: &mut Vec<Entry>) {
        if self.open.iter().any(|open| open == file) {
            return self.broken(format!("{} includes itself", file.display()), "take the line out");
        }
        let text = match (self.read)(file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return self.broken(
                    format!("it includes {}, which is not there: PAM refuses every session", file.display()),
                    "make the file, or take the line out",
                );
            }
            Err(e) => return self.troubles.push(Trouble::Unread(format!("{}: {e}", file.display()))),
        };
        self.open.push(file.to_owned());
        for line in self.lines(file, &text) {
            self.line(file, &line, entries);
        }
        self.open.pop();
    }

    fn broken(&mut self, what: String, mend: &'static str) {
        let trouble = Trouble::Broken(what, mend);
        if !self.troubles.contains(&trouble) {
            self.troubles.push(trouble);
        }
    }

    /// The lines that PAM sees: a backslash at the end continues a line, also before blanks; a comment ends one, so that
    /// a backslash within it continues nothing.
    fn lines(&mut self, file: &Path, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut begun: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                // 1.5 goes on with the line after this one, 1.7 ends the line before it.
                if let Some(begun) = begun.take() {
                    lines.push(begun);
                    self.broken(
                        format!(
                            "{} has a comment or an empty line within a continued line, \
                             which versions of PAM read differently",
                            file.display()
                        ),
                        "write the continued line on one line",
                    );
                }
                continue;
            }
            let (line, comment) =
                line.split_once('#').map_or((line, false), |(before, _)| (before.trim_end(), true));
            let (line, continues) = match line.strip_suffix('\\') {
                Some(line) if !comment => (line, true),
                _ => (line, false),
            };
            let whole = match begun.take() {
                Some(begun) => format!("{begun} {line}"),
                None => line.to_owned(),
            };
            if continues { begun = Some(whole) } else { lines.push(whole) }
        }
        if begun.is_some() {
            self.broken(
                format!("{} ends within a continued line: PAM refuses every session", file.display()),
                "take the last backslash out",
            );
        }
        lines
    }

    fn line(&mut self, file: &Path, line: &str, entries: &mut Vec<Entry>) {
        let (kind, rest) = word(line);
        if kind.eq_ignore_ascii_case("@include") {
            return self.add(&Path::new(PLACES[0]).join(word(rest).0), entries);
        }
        // The dash only keeps a missing module out of the log; the session is refused all the same.
        if !kind.strip_prefix('-').unwrap_or(kind).eq_ignore_ascii_case("session") {
            return;
        }
        // A control is a word, or words in brackets.
        let (control, rest) = match rest.find(']') {
            Some(at) if rest.starts_with('[') => (&rest[..=at], &rest[at + 1..]),
            _ => word(rest),
        };
        let control = control.to_ascii_lowercase();
        let module = word(rest.trim_start()).0;
        if module.is_empty() {
            return self.broken(
                format!("{} has a session line without a module: PAM refuses every session", file.display()),
                "complete the line, or take it out",
            );
        }
        match control.as_str() {
            "include" => self.add(&Path::new(PLACES[0]).join(module), entries),
            "substack" => {
                let mut inner = Vec::new();
                self.add(&Path::new(PLACES[0]).join(module), &mut inner);
                entries.push(Entry::Substack(inner));
            }
            _ => {
                let module = module.rsplit('/').next().unwrap_or(module).to_owned();
                entries.push(Entry::Module { control, module });
            }
        }
    }
}

/// The first word, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stack of `sshd` among these files, and the modules in it; those of a substack in parentheses.
    fn read(files: &[(&str, &str)]) -> (Option<Stack>, String) {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::Error::from(ErrorKind::NotFound))
        };
        let stack = session("sshd", &read);
        let told = stack.as_ref().map(|stack| told(&stack.entries)).unwrap_or_default();
        (stack, told)
    }

    fn told(entries: &[Entry]) -> String {
        let entry = |entry: &Entry| match entry {
            Entry::Module { module, .. } => module.clone(),
            Entry::Substack(inner) => format!("({})", told(inner)),
        };
        entries.iter().map(entry).collect::<Vec<_>>().join(" ")
    }

    fn of(sshd: &str) -> (Stack, String) {
        let (stack, told) = read(&[("/etc/pam.d/sshd", sshd), ("/etc/pam.d/sub", "session required s.so\n")]);
        (stack.unwrap(), told)
    }

    #[test]
    fn includes_and_substacks_are_followed() {
        let (stack, told) = of(
            "auth required a.so\n@include sub\n-session optional /lib/x/b.so a b\nsession\tinclude\tsub\n\
             SESSION Substack sub\n@include /etc/pam.d/sub\n",
        );
        assert_eq!(told, "s.so b.so s.so (s.so) s.so");
        assert_eq!(stack.troubles, []);
    }

    #[test]
    fn controls_are_words_or_brackets() {
        let (stack, _) = of("session [ success=ok \\\n default=BAD ] a.so x\nsession Required b.so\n");
        let controls = |entry: &Entry| match entry {
            Entry::Module { control, .. } => control.split_whitespace().collect::<Vec<_>>().join(" "),
            Entry::Substack(_) => String::new(),
        };
        assert_eq!(
            stack.entries.iter().map(controls).collect::<Vec<_>>(),
            ["[ success=ok default=bad ]", "required"]
        );
    }

    #[test]
    fn a_backslash_swallows_the_next_line_also_before_blanks() {
        for ending in ["\\\n", "\\ \n", "\\\t \n"] {
            let (stack, told) = of(&format!("session optional a.so {ending}session required b.so\n"));
            assert_eq!((told.as_str(), stack.troubles.len()), ("a.so", 0), "{ending:?}");
        }
    }

    #[test]
    fn a_backslash_in_a_comment_swallows_nothing() {
        assert_eq!(of("# old \\\nsession required b.so\n").1, "b.so");
        assert_eq!(of("session optional a.so # old \\\nsession required b.so\n").1, "a.so b.so");
    }

    #[test]
    fn what_pam_refuses_or_versions_read_differently_is_trouble() {
        for (sshd, words) in [
            ("session include none\n", "includes /etc/pam.d/none, which is not there"),
            ("@include none\n", "which is not there"),
            ("session substack none\n", "which is not there"),
            ("session include sshd\n", "includes itself"),
            ("session required\n", "without a module"),
            ("session required a.so \\\n", "ends within a continued line"),
            ("session required \\\n# why\na.so\n", "read differently"),
            ("session optional a.so \\\n\nsession required b.so\n", "read differently"),
        ] {
            let (stack, _) = of(sshd);
            assert!(
                matches!(&stack.troubles[..], [Trouble::Broken(what, _), ..] if what.contains(words)),
                "{sshd:?}: {:?}",
                stack.troubles
            );
        }
    }

    #[test]
    fn other_stands_in_for_a_service_without_session_lines() {
        let other = ("/etc/pam.d/other", "session required o.so\n");
        assert_eq!(read(&[("/etc/pam.d/sshd", "auth required a.so\n"), other]).1, "o.so");
        assert!(read(&[other]).0.is_none(), "no file: that is for the caller to say");
        assert!(read(&[("/etc/pam.d/sshd", "")]).0.is_some_and(|stack| stack.entries.is_empty()));
    }

    #[test]
    fn services_may_be_the_distributions_but_includes_may_not() {
        let vendor = ("/usr/lib/pam.d/sshd", "session required v.so\n");
        assert_eq!(read(&[vendor]).1, "v.so");
        assert_eq!(read(&[vendor, ("/etc/pam.d/sshd", "session required a.so\n")]).1, "a.so");
        let (stack, _) =
            read(&[("/etc/pam.d/sshd", "session include sub\n"), ("/usr/lib/pam.d/sub", vendor.1)]);
        assert_eq!(stack.unwrap().troubles.len(), 1);
    }
}
