//! Layers to a registry and from it: Debian's own, on loopback, by skopeo; and out of images that others made.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use lab::{Host, Running, User};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::common::points::Point;
use crate::common::{SOON, config, until};
use crate::user::CHANGES;
use crate::{assert_same, whole};

const LOWERDIRS: &str = "/srv/overlay/lowerdirs";

/// How long a whole Debian may take on a busy machine, there or back.
const LONG: Duration = Duration::from_secs(180);

/// A host with the layer `debian`, which is small and has a generation.
fn host() -> Host {
    let host = bare();
    host.root("mkdir -m 755 /srv/overlay/lowerdirs/debian").ok();
    host.exec(["python3", "-c", crate::TREE, "/srv/overlay/lowerdirs/debian"]).ok();
    host.root("ojail layer adopt debian").ok();
    host
}

/// A host without layers.
fn bare() -> Host {
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .config(&config(""))
        .pam("sshd")
        .containers()
        .start();
    host.root("mkdir -p -m 700 /srv/overlay/lowerdirs").ok();
    host
}

/// Starts a registry that listens on a port of the loopback, with more lines of configuration.
fn registry<'h>(host: &'h Host, port: u16, more: &str) -> Running<'h> {
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /registry\nhttp:\n  addr: 127.0.0.1:{port}\n{more}"
    );
    host.write("/registry.yml", 0o600, &config);
    let registry = host.root("exec docker-registry serve /registry.yml").spawn();
    until("the registry listens", SOON, || host.inside(|| TcpStream::connect(("127.0.0.1", port))).is_ok());
    registry
}

/// What `ojail layer list --json` says of a layer: the generation that it is, if it is one.
fn generation(host: &Host, name: &str) -> Option<String> {
    let list: Value = serde_json::from_str(&host.root("ojail layer list --json").text()).unwrap();
    let layers = list["layers"].as_array().unwrap().clone();
    let found = layers.into_iter().find(|layer| layer["name"] == name && layer["current"] == true)?;
    found["generation"].as_str().map(str::to_owned)
}

/// What is in the directory of layers, hidden things too; and in the places where something is made and kept.
fn lying(host: &Host) -> String {
    host.root(&format!("cd {LOWERDIRS}; ls -A; ls -A .making .downloads/sha256 2>/dev/null")).run().text()
}

/// The digest of a layer's blob in the registry of a host.
fn blobs(host: &Host, reference: &str) -> Vec<String> {
    let inspected =
        host.root(&format!("skopeo inspect --tls-verify=false --raw docker://{reference}")).text();
    let manifest: Value = serde_json::from_str(&inspected).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned())
        .collect()
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn a_layer_goes_over_a_registry_and_is_the_same_generation() {
    lab::require_root!();
    let host = host();
    let _registry = registry(&host, 5000, "");
    let id = generation(&host, "debian").unwrap();
    // TLS is not left out unasked.
    let refused = host.root("ojail layer push debian 127.0.0.1:5000/layers/debian:12").fails();
    assert!(refused.stderr.contains("server gave HTTP response to HTTPS client"), "{refused}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    for (compress, tag) in [("", "12"), ("--compress zstd", "zstd")] {
        let push =
            format!("ojail layer push debian 127.0.0.1:5000/layers/debian:{tag} --insecure {compress}");
        let said = host.root(&push).text();
        assert!(
            said.starts_with(&format!("debian@{id} is 127.0.0.1:5000/layers/debian:{tag} now: sha256:")),
            "{said}"
        );
        // The same layer is the same image, and is there already.
        assert_eq!(host.root(&push).text(), said);
    }
    let refused = host.root("ojail layer pull other 127.0.0.1:5000/layers/debian:12").fails();
    assert!(refused.stderr.contains("server gave HTTP response to HTTPS client"), "{refused}");
    let before = whole(&host, &format!("{LOWERDIRS}/debian"));
    for (name, tag) in [("other", "12"), ("small", "zstd")] {
        let said = host
            .root(&format!("ojail layer pull {name} 127.0.0.1:5000/layers/debian:{tag} --insecure"))
            .text();
        assert!(said.starts_with(&format!("{name} is {name}@{id} now (")), "{said}");
        assert_same(&whole(&host, &format!("{LOWERDIRS}/{name}")), &before);
    }
    host.root("ojail layer verify").ok();
    // Once more there is nothing new, and nothing is left lying.
    host.root("ojail layer pull other 127.0.0.1:5000/layers/debian:12 --insecure").ok();
    let lies = lying(&host);
    assert!(lies.ends_with(&format!("small@{id}.json\n.downloads/sha256:\n\n.making:")), "{lies}");
    host.root("ojail layer import third 127.0.0.1:5000/layers/debian:12 --insecure --separate").ok();
    assert_eq!(generation(&host, "third-1").unwrap(), id);
    // As everybody sees it.
    let raw =
        host.root("skopeo inspect --tls-verify=false --raw docker://127.0.0.1:5000/layers/debian:12").text();
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert!(manifest["annotations"]["ojail.layer.digest"].as_str().unwrap().starts_with(&id));
    assert_eq!(manifest["annotations"]["ojail.layer.how"], "adopt");
    host.root("skopeo copy -q --src-tls-verify=false docker://127.0.0.1:5000/layers/debian:12 oci:/seen:x; umoci unpack --image /seen:x /bundle").ok();
    let lines = |tree: &str| -> Vec<String> {
        whole(&host, tree)
            .lines()
            .filter(|line| !line.contains("opaque") && !line.contains("whiteout"))
            // umoci makes none.
            .map(|line| line.replace("'holes'", "''"))
            .collect()
    };
    let (umoci, ours) = (lines("/bundle/rootfs"), lines(&format!("{LOWERDIRS}/debian")));
    // The root has changed, for what is hidden in it.
    assert_same(&umoci[1..].join("\n"), &ours[1..].join("\n"));
    let log = host.log();
    assert!(
        log.iter().any(|line| line.contains("event=layer-push") && line.contains("layer=debian@")),
        "{log:?}"
    );
    assert!(log.iter().any(|line| line.contains("event=layer-pull")), "{log:?}");
}

#[test]
fn a_user_logs_in_on_layers_that_came_over_a_registry() {
    lab::require_root!();
    let from = lab::host().layer("debian").config(&config("")).containers().start();
    // The shared layer cannot be renamed, for it is mounted.
    from.root("mkdir -m 755 /srv/overlay/lowerdirs/base; cp -a /srv/overlay/lowerdirs/debian/. /srv/overlay/lowerdirs/base; ojail layer adopt base").ok();
    let running = registry(&from, 5000, "");
    let said = from.root("ojail layer push base 127.0.0.1:5000/base:1 --insecure").within(LONG).text();
    assert!(said.contains("parts)"), "{said}");
    running.kill();
    let to = bare();
    let stored = from.root("tar -cf - /registry").run();
    to.root("tar -xf - -C /").stdin(&stored.bytes).ok();
    let _registry = registry(&to, 5000, "");
    to.root("ojail layer pull debian 127.0.0.1:5000/base:1 --insecure").within(LONG).ok();
    assert_eq!(
        to.ssh("alice", "id -un; . /etc/os-release; echo $ID; ls -l /bin/su | cut -c4").text(),
        "alice\ndebian\ns"
    );
    assert_eq!(generation(&to, "debian"), generation(&from, "base"));
}

#[test]
fn credentials_are_those_of_skopeo() {
    lab::require_root!();
    let host = host();
    // "secret" by bcrypt.
    host.write("/passwords", 0o600, "lab:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n");
    let _registry = registry(&host, 5000, "auth:\n  htpasswd:\n    realm: lab\n    path: /passwords\n");
    let push = "ojail layer push debian 127.0.0.1:5000/debian:1 --insecure";
    let refused = host.root(push).fails();
    assert!(
        refused.stderr.contains("uthentication required") && refused.stderr.lines().count() == 1,
        "{refused}"
    );
    host.root("mkdir -m 700 /run/user-root; XDG_RUNTIME_DIR=/run/user-root skopeo login --tls-verify=false -u lab -p secret 127.0.0.1:5000").ok();
    host.root(&format!("XDG_RUNTIME_DIR=/run/user-root {push}")).ok();
    host.root("REGISTRY_AUTH_FILE=/run/user-root/containers/auth.json ojail layer pull x 127.0.0.1:5000/debian:1 --insecure").ok();
    let refused = host.root("ojail layer pull y 127.0.0.1:5000/debian:1 --insecure").fails();
    assert!(refused.stderr.contains("uthentication required"), "{refused}");
}

#[test]
fn what_a_registry_does_wrong_changes_nothing() {
    lab::require_root!();
    let host = host();
    let running = registry(&host, 5000, "");
    host.root("ojail layer push debian 127.0.0.1:5000/debian:1 --insecure").ok();
    // An image that says something else of itself than is so, of its layer, and one that says nothing.
    host.root("skopeo copy -q --src-tls-verify=false docker://127.0.0.1:5000/debian:1 oci:/liar:x").ok();
    let lie = |tag: &str, change: &dyn Fn(&mut Value)| {
        let layout = host.path("/liar");
        let read =
            |name: &str| -> Value { serde_json::from_slice(&fs::read(layout.join(name)).unwrap()).unwrap() };
        let blob = |content: &[u8]| {
            let digest = sha256(content);
            fs::write(layout.join("blobs/sha256").join(&digest), content).unwrap();
            serde_json::json!({ "digest": format!("sha256:{digest}"), "size": content.len() })
        };
        let of =
            |descriptor: &Value| format!("blobs/sha256/{}", &descriptor["digest"].as_str().unwrap()[7..]);
        // Once read, it is always the first that is changed.
        let index = host.path("/liar/index.first");
        if !index.exists() {
            fs::copy(layout.join("index.json"), &index).unwrap();
        }
        let mut index = read("index.first");
        let mut manifest = read(&of(&index["manifests"][0]));
        let config = read(&of(&manifest["config"]));
        let mut both = serde_json::json!({ "manifest": manifest, "config": config });
        change(&mut both);
        manifest = both["manifest"].take();
        let config = blob(&serde_json::to_vec(&both["config"]).unwrap());
        for key in ["digest", "size"] {
            manifest["config"][key] = config[key].clone();
        }
        let new = blob(&serde_json::to_vec(&manifest).unwrap());
        for key in ["digest", "size"] {
            index["manifests"][0][key] = new[key].clone();
        }
        index["manifests"][0]["annotations"] =
            serde_json::json!({ "org.opencontainers.image.ref.name": tag });
        fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        host.root(&format!("skopeo copy -q --preserve-digests --dest-tls-verify=false oci:/liar:{tag} docker://127.0.0.1:5000/debian:{tag}")).ok();
    };
    lie("liar", &|both| both["manifest"]["annotations"]["ojail.layer.digest"] = "0".repeat(64).into());
    lie("other", &|both| {
        both["config"]["rootfs"]["diff_ids"][0] = format!("sha256:{}", "1".repeat(64)).into()
    });
    lie("silent", &|both| both["manifest"]["annotations"] = serde_json::json!({}));
    let state = || format!("{}\n{}", lying(&host), whole(&host, &format!("{LOWERDIRS}/debian/")));
    // The place for what is carried stays.
    host.root("ojail layer pull debian 127.0.0.1:5000/debian:1 --insecure").ok();
    let before = state();
    let refused = |what: &str, why: &str| {
        let refused = host.root(&format!("ojail layer pull debian {what} --insecure")).fails();
        assert!(refused.stderr.contains(why), "{what}: {refused}");
        assert_eq!(refused.stderr.lines().count(), 1, "{what}: {refused}");
        refused
    };
    refused("127.0.0.1:5000/debian:none", "manifest unknown");
    refused("127.0.0.1:5000/nothing:1", "cannot bring 127.0.0.1:5000/nothing:1: ");
    refused("127.0.0.1:5001/debian:1", "connection refused");
    refused("127.0.0.1:5000/debian:liar", "says that its content has the digest 0000");
    refused("127.0.0.1:5000/debian:other", "is damaged: a layer, uncompressed, has the digest");
    refused(
        "127.0.0.1:5000/debian:silent",
        "was not written by `ojail layer push`; `ojail layer import debian 127.0.0.1:5000/debian:silent`",
    );
    assert_same(&state(), &before);
    // Other bytes than the digest says.
    let blob = &blobs(&host, "127.0.0.1:5000/debian:1")[0];
    let data = format!("/registry/docker/registry/v2/blobs/sha256/{}/{blob}/data", &blob[..2]);
    host.root(&format!("printf XXXX | dd of={data} bs=1 seek=2000 conv=notrunc status=none")).ok();
    let said = refused("127.0.0.1:5000/debian:1", "igest did not match");
    assert!(said.stderr.contains(blob.as_str()), "{said}");
    // Without what is kept of it: that is for the next try.
    host.root("rm -f /srv/overlay/lowerdirs/.downloads/sha256/*").ok();
    assert_same(&state(), &before);
    running.kill();
    refused("127.0.0.1:5000/debian:1", "connection refused");
    for (command, code, why) in [
        ("ojail layer push debian debian:1", 2, "is no REGISTRY/REPO:TAG"),
        ("ojail layer push debian oci:/x", 2, "is no REGISTRY/REPO:TAG"),
        ("ojail layer push nothing 127.0.0.1:5000/x:1", 1, "layer \"nothing\": there is none of this name"),
        ("ojail layer push ../x 127.0.0.1:5000/x:1", 1, "layer \"../x\""),
        ("ojail layer pull x@0123456789ab 127.0.0.1:5000/x:1", 1, "a new layer is named without \"@\""),
        ("ojail layer import x ./image.tar", 2, "no oci:DIR, oci-archive:FILE or docker-archive:FILE either"),
        ("ojail layer import x oci:/nothing", 1, "cannot bring oci:/nothing: "),
        ("PATH=/nothing ojail layer pull x 127.0.0.1:5000/x:1", 1, "skopeo"),
    ] {
        let command = command.replacen("ojail", "/usr/sbin/ojail", 1);
        let refused = host.root(&command).fails();
        assert!(refused.stderr.contains(why) && refused.code() == Some(code), "{command}: {refused}");
    }
    assert_same(&state(), &before);
}

/// Between a registry on port 5000 and who asks it, on 5001: counts what the registry sends, and lets a mebibyte through of what is
/// asked for by the word in `/cut`. With Debian's python3-minimal: no more than sockets and threads.
const BETWEEN: &str = r#"
import os, socket, threading
listener = socket.create_server(("127.0.0.1", 5001))
carried = 0
def word():
    try:
        return open("/cut", "rb").read()
    except OSError:
        return b""
def pair(client):
    server = socket.create_connection(("127.0.0.1", 5000))
    cut = threading.Event()
    def asks():
        while data := client.recv(1 << 14):
            if word() and word() in data:
                cut.set()
            server.sendall(data)
    def answers():
        global carried
        left = 1 << 20
        while data := server.recv(1 << 14):
            carried += len(data)
            open("/carried", "w").write(str(carried))
            if cut.is_set():
                left -= len(data)
            if left < 0:
                break
            client.sendall(data)
    def run(what):
        try:
            what()
        except OSError:
            pass
        for side in client, server:
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
    for what in asks, answers:
        threading.Thread(target=run, args=(what,), daemon=True).start()
while True:
    pair(listener.accept()[0])
"#;

#[test]
fn after_a_cut_what_had_come_whole_is_not_carried_again() {
    lab::require_root!();
    let host = bare();
    // Nothing of it can be compressed: three parts of 33 MiB and a small one.
    host.root(
        "mkdir -m 755 /srv/overlay/lowerdirs/large; cd /srv/overlay/lowerdirs/large; for f in a b c; do head -c 34603008 /dev/urandom > $f; done; \
         echo small > d; ojail layer adopt large",
    )
    .ok();
    let _registry = registry(&host, 5000, "");
    let _between = host.exec(["python3", "-c", BETWEEN]).spawn();
    until("something listens between", SOON, || {
        host.inside(|| TcpStream::connect(("127.0.0.1", 5001))).is_ok()
    });
    let carried = || -> u64 { host.root("cat /carried").text().parse().unwrap() };
    // The way there. The last of the parts is begun and not ended: what was before it is there.
    let said = host.root("ojail layer push large 127.0.0.1:5000/large:1 --insecure").within(LONG).text();
    assert!(said.contains("(4 parts)"), "{said}");
    let id = generation(&host, "large").unwrap();
    let parts = blobs(&host, "127.0.0.1:5000/large:1");
    assert_eq!(parts.len(), 4);

    host.write("/cut", 0o600, &parts[1]);
    let refused = host.root("ojail layer pull other 127.0.0.1:5001/large:1 --insecure").within(LONG).fails();
    assert!(
        refused.stderr.starts_with("ojail: cannot bring 127.0.0.1:5001/large:1: ")
            && refused.stderr.lines().count() == 1,
        "{refused}"
    );
    assert_eq!(generation(&host, "other"), None);
    let kept: Vec<String> =
        host.root("ls /srv/overlay/lowerdirs/.downloads/sha256").text().lines().map(str::to_owned).collect();
    assert!(!kept.contains(&parts[1]), "what did not come whole is kept");
    let bytes = 34_603_008 * kept.iter().filter(|name| parts[..3].contains(name)).count() as u64;
    eprintln!(
        "{} of 4 parts were kept after the cut",
        kept.iter().filter(|name| parts.contains(name)).count()
    );
    assert!(kept.iter().any(|name| parts.contains(name)), "{kept:?}");
    assert_eq!(host.root("ls -A /srv/overlay/lowerdirs/.making").text(), "");

    host.root("rm /cut").ok();
    let first = carried();
    host.root("ojail layer pull other 127.0.0.1:5001/large:1 --insecure").within(LONG).ok();
    assert_eq!(generation(&host, "other"), Some(id));
    let all = 3 * 34_603_008;
    let carried = carried() - first;
    eprintln!("{carried} of {all} bytes were carried after it");
    assert!(carried < all - bytes + (1 << 20), "{carried} bytes were carried again");
    assert_eq!(host.root("ls -A /srv/overlay/lowerdirs/.downloads/sha256").text(), "");

    // What the registry has is not sent once more.
    let before: u64 = host.root("du -sb /registry | cut -f1").text().parse().unwrap();
    host.root("ojail layer push other 127.0.0.1:5001/large:2 --insecure").within(LONG).ok();
    let after: u64 = host.root("du -sb /registry | cut -f1").text().parse().unwrap();
    assert!(after < before + (1 << 16), "{before} {after}");
}

#[test]
fn a_kill_at_any_change_of_a_pull_leaves_the_old_or_the_new_layer() {
    lab::require_root!();
    let host = bare();
    host.root("mkdir -m 755 /srv/overlay/lowerdirs/l; cd /srv/overlay/lowerdirs/l; echo 1 > f; mkdir d; ln -s x d/s; ojail layer adopt l").ok();
    let _registry = registry(&host, 5000, "");
    host.root("ojail layer push l 127.0.0.1:5000/l:1 --insecure; cd /srv/overlay/lowerdirs; rm -r l l@*; mkdir -m 755 l; echo 2 > l/f; ojail layer adopt l").ok();
    let old = generation(&host, "l").unwrap();
    host.root("cp -a /srv/overlay/lowerdirs /srv/overlay/kept").ok();
    let begin =
        || host.root("rm -rf /srv/overlay/lowerdirs; cp -a /srv/overlay/kept /srv/overlay/lowerdirs").ok();
    let pull = "ojail layer pull l 127.0.0.1:5000/l:1 --insecure";
    host.root(pull).ok();
    let new = generation(&host, "l").unwrap();
    let lies = lying(&host);
    assert_ne!(old, new);
    begin();
    let points: Vec<_> = Point::all(&host, pull)
        .into_iter()
        .filter(|point| CHANGES.contains(&&*point.call) && point.call != "write")
        .collect();
    let (mut before, mut behind) = (0, 0);
    for point in &points {
        begin();
        point.kill(&host, pull);
        let at = format!("a kill at {point}");
        let now = generation(&host, "l").unwrap_or_default();
        assert!(now == old || now == new, "{at}: {now}");
        if now == old {
            before += 1
        } else {
            behind += 1
        }
        host.root("ojail layer verify l").ok();
        host.root(pull).ok();
        assert_eq!(generation(&host, "l").as_ref(), Some(&new), "{at}");
        assert_eq!(lying(&host), lies, "{at}");
    }
    eprintln!("{} points, {before} before the step and {behind} behind it", points.len());
    assert!(before > 20 && behind > 1, "{before} before, {behind} behind");
}

#[test]
fn images_of_others_become_layers() {
    lab::require_root!();
    let host = bare();
    host.root("mkdir /base; cd /base; umask 022; mkdir -p etc opt/old usr/bin; echo 1 > etc/one; echo 2 > etc/two; echo x > opt/old/x; ln -s usr/bin bin").ok();
    // The second image has a layer more, which deletes a file and hides a directory.
    host.root(
        "set -e; cd /; umoci init --layout image; umoci new --image image:one; tar -cf base.tar -C base .; umoci raw add-layer --image image:one base.tar; \
         umoci unpack --image image:one bundle; cd bundle/rootfs; rm etc/one; rm -r opt; mkdir -p opt/new; echo 3 > etc/three; cd /; \
         umoci repack --image image:two bundle; skopeo copy -q oci:image:two oci-archive:image.tar:two; \
         skopeo copy -q oci:image:two docker-archive:docker.tar:lab/two:1",
    )
    .ok();
    for (name, image) in [
        ("a", "oci:/image:two"),
        ("b", "oci-archive:/image.tar:two"),
        ("c", "docker-archive:/docker.tar"),
        ("d", "docker-archive:/docker.tar:lab/two:1"),
    ] {
        let said = host.root(&format!("ojail layer import {name} {image}")).text();
        assert!(said.starts_with(&format!("{name} is {name}@")), "{said}");
        let seen =
            host.root(&format!("cd {LOWERDIRS}/{name}/; find . | sort; cat etc/*; find . -type c")).text();
        assert_eq!(
            seen, ".\n./bin\n./etc\n./etc/three\n./etc/two\n./opt\n./opt/new\n./usr\n./usr/bin\n3\n2",
            "{image}"
        );
        assert_eq!(generation(&host, name), generation(&host, "a"), "{image}");
    }
    // umoci rounds times, and others cut them off.
    let lines = |tree: &str| -> String {
        let whole = whole(&host, tree);
        let lines = whole.lines().skip(1).map(|line| line.split(" time ").next().unwrap().to_owned() + "\n");
        lines.collect()
    };
    assert_same(&lines(&format!("{LOWERDIRS}/a/")), &lines("/bundle/rootfs"));
    let said = host.root("ojail layer import s oci:/image:two --separate").text();
    assert!(
        said.starts_with("A profile has them with `layers = [\"s-2\", \"s-1\"]`.\ns-1 is s-1@"),
        "{said}"
    );
    assert!(host.root("find /srv/overlay/lowerdirs/s-2/ -type c").text().contains("etc/one"));
    let record = host.root("cat /srv/overlay/lowerdirs/s-2@*.json").text();
    assert!(
        record.contains("\"s-1@") && record.contains("\"import\"") && record.contains("--separate"),
        "{record}"
    );
    // The profile's jails see what the image is.
    host.root("mount -t overlay -o userxattr,lowerdir=/srv/overlay/lowerdirs/s-2:/srv/overlay/lowerdirs/s-1 overlay /mnt").ok();
    assert_eq!(
        host.root("cd /mnt; find . | sort").text(),
        host.root("cd /srv/overlay/lowerdirs/a/; find . | sort").text()
    );

    // Cut short, changed, hostile: nothing comes of it.
    host.root(
        "set -e; cd /; head -c 5000 image.tar > short.tar; cp -a image changed; \
         blob=$(cd changed/blobs/sha256; for f in *; do gzip -tq < $f 2>/dev/null && echo $f; done | head -1); printf XXXX | dd of=changed/blobs/sha256/$blob bs=1 seek=60 conv=notrunc status=none; \
         mkdir -p evil/x; ln -s /root evil/x/l; tar -cf evil.tar -C evil x; cd evil; rm x/l; mkdir x/l; echo owned > x/l/owned; cd /; tar -rf evil.tar -C evil x/l/owned; \
         mknod disk b 8 0; tar -cf disk.tar disk; for bad in evil disk; do umoci new --image image:$bad; umoci raw add-layer --image image:$bad $bad.tar; done",
    )
    .ok();
    let before = lying(&host);
    for (image, why) in [
        ("oci-archive:/short.tar", "cannot bring oci-archive:/short.tar: "),
        ("docker-archive:/short.tar", "cannot bring docker-archive:/short.tar: "),
        ("oci:/changed:two", "igest"),
        ("oci:/image:none", "cannot bring oci:/image:none: "),
        ("oci:/image:evil", "\"x/l/owned\" is below \"l\", which is a symbolic link"),
        ("oci:/image:disk", "\"disk\" is a block device (8, 0)"),
    ] {
        let refused = host.root(&format!("ojail layer import bad {image}")).fails();
        assert!(refused.stderr.contains(why) && refused.stderr.lines().count() == 1, "{image}: {refused}");
        host.root("rm -f /srv/overlay/lowerdirs/.downloads/sha256/*").ok();
        assert_eq!(lying(&host), before, "{image}");
    }
    assert!(!host.path("/root/owned").exists());
}
