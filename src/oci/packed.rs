//! Layers that are compressed: recognised by their first bytes, and unpacked by gzip(1) and zstd(1), in a process of their own.
//!
//! By the programs and not by libraries: gzip is on every Debian and zstd(1) a small package, both are another processor's work while
//! the tree is written, and a mistake in them is not one in a process that writes the tree. zstd(1) refuses what needs more than
//! 128 MiB of memory.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use crate::error::{Act, Error, Result};

/// What is read, unpacked if need be.
#[derive(Debug)]
pub struct Plain<R> {
    from: Source<R>,
}

#[derive(Debug)]
enum Source<R> {
    AsItIs(Begun<R>),
    Unpacked {
        program: &'static str,
        child: Child,
        /// `None` once it was read to its end.
        out: Option<ChildStdout>,
        /// Gives the program what it reads, and then back what it was read from.
        feeder: JoinHandle<(R, io::Result<()>)>,
    },
}

/// What was looked at comes first.
#[derive(Debug)]
struct Begun<R> {
    first: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Read for Begun<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.first.read(room)? {
            0 => self.rest.read(room),
            read => Ok(read),
        }
    }
}

impl<R: Read + Send + 'static> Plain<R> {
    /// Looks at the first bytes.
    ///
    /// # Errors
    /// [`Error::Act`] if they cannot be read, or there is no such program.
    pub fn of(mut from: R) -> Result<Self> {
        let mut first = Vec::new();
        Read::by_ref(&mut from).take(4).read_to_end(&mut first).act("read", "a layer")?;
        let program = match first.as_slice() {
            // RFC 1952, 2.3.1.
            [0x1f, 0x8b, ..] => "gzip",
            // RFC 8878, 3.1.1.
            [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
            _ => {
                return Ok(Self {
                    from: Source::AsItIs(Begun { first: io::Cursor::new(first), rest: from }),
                });
            }
        };
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").arg("-dc");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().act("run", program)?;
        let (into, out) = (child.stdin.take(), child.stdout.take());
        let feeder = thread::spawn(move || {
            let mut from = Begun { first: io::Cursor::new(first), rest: from };
            let fed = match into {
                Some(mut into) => io::copy(&mut from, &mut into).map(drop),
                None => Ok(()),
            };
            (from.rest, fed)
        });
        Ok(Self { from: Source::Unpacked { program, child, out, feeder } })
    }

    /// After all was read: whether the program came to its end. Gives back what was read from.
    ///
    /// # Errors
    /// [`Error::LayerTar`] if what is compressed is cut short or damaged.
    pub fn end(self) -> Result<R> {
        match self.from {
            Source::AsItIs(begun) => Ok(begun.rest),
            Source::Unpacked { program, mut child, out, feeder } => {
                // It ends, also if not all of it was wanted.
                drop(out);
                let status = child.wait().act("wait for", program)?;
                let (from, fed) =
                    feeder.join().map_err(|_| io::Error::other("it ended early")).act("feed", program)?;
                match fed {
                    // It has stopped to read.
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                    fed => fed.act("read", "a layer")?,
                }
                if status.success() {
                    return Ok(from);
                }
                let why = format!("{program} cannot unpack it ({status}): it is cut short or damaged");
                Err(Error::LayerTar { why })
            }
        }
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match &mut self.from {
            Source::AsItIs(begun) => begun.read(room),
            Source::Unpacked { out, .. } => match out {
                Some(out) => out.read(room),
                None => Ok(0),
            },
        }
    }
}
