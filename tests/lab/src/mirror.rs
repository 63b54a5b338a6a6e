//! A mirror of the few Debian packages that tests build with, for hosts that reach no other: on the loopback of one of them.
//!
//! The packages are fetched once, from where the machine gets its own, and kept in the cache (see [`crate::image`]).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::host::Host;
use crate::image;

/// On the host's loopback.
const ADDRESS: &str = "127.0.0.1:3142";

/// How often the server looks whether it is still wanted, and whether somebody has come.
const PAUSE: Duration = Duration::from_millis(5);

/// A mirror that serves, until it is dropped.
pub struct Mirror {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    suite: String,
}

impl Mirror {
    /// Its line in sources.list(5). It is not signed.
    pub fn line(&self) -> String {
        format!("deb [trusted=yes] http://{ADDRESS}/ {} main", self.suite)
    }

    /// The release of Debian that it has.
    pub fn suite(&self) -> &str {
        &self.suite
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Serves the mirror on a host's loopback. It listens when this returns.
pub(crate) fn serve(host: &Host) -> Mirror {
    let top = image::tree("mirror");
    let listener = host
        .inside(|| TcpListener::bind(ADDRESS))
        .unwrap_or_else(|error| panic!("cannot listen on {ADDRESS} in the host: {error}"));
    listener.set_nonblocking(true).expect("a listener can be asked without waiting");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let server = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((client, _)) => {
                    let top = top.clone();
                    // Ends with its client.
                    thread::spawn(move || answer(&client, &top));
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    });
    Mirror { stop, server: Some(server), suite: image::suite() }
}

/// Answers requests, one after the other, until the client has no more. Who has none for half a minute has no more.
fn answer(client: &TcpStream, top: &Path) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut requests = BufReader::new(client).lines();
    while let Some(first) = requests.next().transpose()? {
        // Nothing that it says of itself matters here.
        while requests.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let wanted = first.split(' ').nth(1).map(decode).unwrap_or_default();
        let (status, body) = match file(top, &wanted) {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", Vec::new()),
        };
        let mut client = client;
        write!(client, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        client.write_all(&body)?;
    }
    Ok(())
}

fn file(top: &Path, wanted: &str) -> Option<Vec<u8>> {
    let plain = wanted.split('/').all(|part| part != "..");
    fs::read(top.join(wanted.trim_start_matches('/'))).ok().filter(|_| plain)
}

/// `%3a` becomes `:`: versions have that in the names of files.
fn decode(path: &str) -> String {
    let mut parts = path.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or(("", part));
        decoded.extend(u8::from_str_radix(code, 16).ok().map(char::from));
        decoded.push_str(rest);
    }
    decoded
}

/// Makes the mirror of packages as a directory, by `sh`: see [`image`].
pub(crate) const MAKE: &str = r#"
    suite=$1 dir=$2 packages=$3
    arch=$(dpkg --print-architecture)
    mkdir -p "$dir/pool" "$dir/dists/$suite/main/binary-$arch"
    # Debian's own tool fetches what a build needs; what it builds is not wanted.
    mmdebstrap --variant=minbase --include="$packages" --skip=essential/unlink \
        --customize-hook="sync-out /var/cache/apt/archives $dir/pool" "$suite" /dev/null
    rm -rf "$dir/pool/lock" "$dir/pool/partial"
    cd "$dir"
    dpkg-scanpackages --multiversion pool > "dists/$suite/main/binary-$arch/Packages"
    cd "dists/$suite"
    packages=main/binary-$arch/Packages
    cat > Release <<END
Origin: lab
Suite: $suite
Codename: $suite
Components: main
Architectures: $arch
Date: $(date -u -R | sed 's/+0000/UTC/')
SHA256:
 $(sha256sum < $packages | cut -d ' ' -f 1) $(stat -c %s $packages) $packages
END
"#;
