//! `manual TEMPLATE PROGRAM DIRECTORY`: writes `man/ojail.8` and `completions/` below the directory. PROGRAM is where `ojail` will
//! be installed. For the Makefile.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use io::Write;

use manual::{SHELLS, completions, page};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let done = match arguments.as_slice() {
        [template, program, directory] => {
            write(template.as_ref(), &program.to_string_lossy(), directory.as_ref())
        }
        _ => Err(io::Error::other("usage: manual TEMPLATE PROGRAM DIRECTORY")),
    };
    if let Err(error) = done {
        let _ = writeln!(io::stderr(), "manual: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write(template: &Path, program: &str, directory: &Path) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(template).map_err(|error| named(template, error))?;
    let mut files = vec![("man/ojail.8".to_owned(), page(&text).map_err(|error| named(template, error))?)];
    for (shell, name) in SHELLS {
        files.push((format!("completions/{name}"), completions(shell, program)?));
    }
    for (name, text) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap_or(directory)).map_err(|error| named(&path, error))?;
        fs::write(&path, text).map_err(|error| named(&path, error))?;
    }
    Ok(())
}
