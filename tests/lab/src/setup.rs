//! What a host should be, told by the test in a chain of calls; [`Setup::start`] makes it so, of namespaces, or
//! [`Setup::boot`], as a whole machine.

use std::path::PathBuf;

use crate::host::Host;
use crate::image;
use crate::machine::{Hardware, Machine};

/// Every user's password.
pub const PASSWORD: &str = "lab";

/// [`PASSWORD`] as `/etc/shadow` has it.
pub(crate) const PASSWORD_HASH: &str =
    "$6$ojaillab$I1lkEmnxRve8ZHhb6wq4RM/sR9ThQJwGR1hu3TPoaQOnDSK2Q2nbwBQHwo3u9QHSx8ojbAOw46nj.gQmJUUFq/";

/// Begins a host: ojail installed but wired to nothing, no configuration, no users, no layers.
#[must_use = "nothing runs until .start()"]
pub fn host() -> Setup {
    Setup {
        users: Vec::new(),
        layers: Vec::new(),
        own_layers: Vec::new(),
        files: Vec::new(),
        pam: Vec::new(),
        sshd_config: String::new(),
        ojail: true,
        small_disk: None,
        hardware: Hardware::default(),
        network: false,
        tree: "host",
    }
}

/// A host to be. Made by [`host()`].
#[must_use = "nothing runs until .start()"]
pub struct Setup {
    pub(crate) users: Vec<User>,
    /// Names in `/srv/overlay/lowerdirs`, and where their content is.
    pub(crate) layers: Vec<(String, PathBuf)>,
    /// The same, to be copied.
    pub(crate) own_layers: Vec<(String, PathBuf)>,
    pub(crate) files: Vec<TextFile>,
    pub(crate) pam: Vec<(String, String)>,
    pub(crate) sshd_config: String,
    pub(crate) ojail: bool,
    pub(crate) small_disk: Option<String>,
    pub(crate) hardware: Hardware,
    pub(crate) network: bool,
    /// The Debian that it is.
    pub(crate) tree: &'static str,
}

pub(crate) struct TextFile {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    pub(crate) text: String,
}

impl Setup {
    /// A user with a home, the password [`PASSWORD`], and root's SSH key among the authorized ones.
    pub fn user(mut self, user: impl Into<User>) -> Self {
        self.users.push(user.into());
        self
    }

    /// Puts the layer `debian`, `nginx` or `tools` into `/srv/overlay/lowerdirs`, read-only and shared with
    /// all hosts. What a test wants to change goes there by [`Host::path`] instead.
    pub fn layer(mut self, name: &str) -> Self {
        self.layers.push((name.into(), image::tree(name)));
        self
    }

    /// The same as a copy of the host's own, to be changed, renamed and removed. That takes a moment and its space.
    pub fn own_layer(mut self, name: &str) -> Self {
        self.own_layers.push((name.into(), image::tree(name)));
        self
    }

    /// The same for a packed layer: `debian.erofs` or `debian.squashfs`.
    pub fn image(self, name: &str) -> Self {
        self.layer(name)
    }

    /// A file of root's, with the directories above it.
    pub fn file(mut self, path: &str, mode: u32, text: &str) -> Self {
        self.files.push(TextFile { path: path.into(), mode, text: text.into() });
        self
    }

    /// `/etc/ojail/ojail.toml`.
    pub fn config(self, toml: &str) -> Self {
        self.file("/etc/ojail/ojail.toml", 0o644, toml)
    }

    /// Wires ojail to a PAM service as the administrator should. `su -` includes `su`'s lines. A service
    /// that Debian doesn't have is made, and lets everybody in.
    pub fn pam(self, service: &str) -> Self {
        self.pam_line(service, "session required pam_ojail.so")
    }

    /// Appends any line to a PAM service.
    pub fn pam_line(mut self, service: &str, line: &str) -> Self {
        self.pam.push((service.into(), line.into()));
        self
    }

    /// Lines for sshd, on top of Debian's `sshd_config` and stronger than it.
    pub fn sshd_config(mut self, lines: &str) -> Self {
        self.sshd_config.push_str(lines);
        self.sshd_config.push('\n');
        self
    }

    /// A host that has never seen ojail.
    pub fn without_ojail(mut self) -> Self {
        self.ojail = false;
        self
    }

    /// Puts `/srv/overlay` on a disk of that size, such as `64M`, to be filled up.
    pub fn small_disk(mut self, size: &str) -> Self {
        self.small_disk = Some(size.into());
        self
    }

    /// Plugs the host into a world of its own, see [`crate::world`]. Not for machines.
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Has the tools of containers, too: skopeo, umoci, and Debian's `docker-registry`. Not for machines.
    pub fn containers(mut self) -> Self {
        self.tree = "containers";
        self
    }

    /// Has the tools of XFS and btrfs, too, for disks in files. Not for machines.
    pub fn disks(mut self) -> Self {
        self.tree = "disks";
        self
    }

    /// Has the tools that build a Debian, too: mmdebstrap and debootstrap. Not for machines.
    pub fn builder(mut self) -> Self {
        self.tree = "builder";
        self
    }

    /// What a machine is made of, for [`Setup::boot`].
    pub fn hardware(mut self, hardware: Hardware) -> Self {
        self.hardware = hardware;
        self
    }

    /// Boots a machine instead of a host, which takes a thousand times longer; at the return its sshd listens.
    pub fn boot(self) -> Machine {
        Machine::boot(self)
    }

    /// Starts the host; at the return its sshd listens.
    pub fn start(self) -> Host {
        Host::start(&self)
    }
}

/// An account of a host.
pub struct User {
    pub(crate) name: String,
    pub(crate) uid: Option<u32>,
    pub(crate) shell: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    /// The next free uid, a group of the same name, and bash.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), uid: None, shell: "/bin/bash".into(), groups: Vec::new() }
    }

    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    pub fn shell(mut self, path: &str) -> Self {
        self.shell = path.into();
        self
    }

    /// Supplementary groups, made where they don't exist.
    pub fn groups<'a>(mut self, groups: impl IntoIterator<Item = &'a str>) -> Self {
        self.groups.extend(groups.into_iter().map(String::from));
        self
    }
}

impl From<&str> for User {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}
