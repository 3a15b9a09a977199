//! Container engines with the union below them: podman, buildah and docker build, run, commit, save and load real images.
//!
//! What an engine makes on the union must equal what it makes with its own plain driver, which copies whole trees (vfs).
//! Slow, and for hosts with the engines: `cargo xtask engines`.

mod docker;
mod image;
mod store;

use e2e::mounted::scratch;
use e2e::require;
use e2e::require::say;
use e2e::user::{Role, run_measurement};
use image::{CONTAINERFILE, base, payload, tree};
use store::{Driver, Store};

/// Containers that run at the same time.
const CONTAINERS: usize = 20;

#[test]
#[ignore = "minutes, needs podman and buildah: cargo xtask engines"]
fn an_image_built_on_the_union_equals_one_built_on_plain_copies() {
    require!(Union, Podman);
    let scratch = scratch();
    payload(scratch.path());
    let built = |driver| {
        let store = Store::new(scratch.path(), driver);
        store.podman(&["import", "-q", &base().display().to_string(), "localhost/base"]);
        let context = scratch.path().display().to_string();
        store.podman(&[
            "build",
            "-q",
            "--isolation=chroot",
            "--network=host",
            "-t",
            "localhost/built",
            &context,
        ]);
        let tree = tree(&store, "localhost/built");
        (store, tree)
    };
    let (plain, want) = built(Driver::Vfs);
    plain.remove();
    let (store, got) = built(Driver::Union);
    say(&format!("build of {} instructions: {} objects", CONTAINERFILE.lines().count(), got.len()));
    image::assert_equal(&want, &got);
    let saved = scratch.path().join("saved.tar").display().to_string();
    store.podman(&["save", "-q", "--format=oci-archive", "-o", &saved, "localhost/built"]);
    store.podman(&["rmi", "-f", "localhost/built"]);
    store.podman(&["load", "-q", "-i", &saved]);
    image::assert_equal(&want, &tree(&store, "localhost/built"));
    store.remove();
}

#[test]
#[ignore = "minutes, needs podman and buildah: cargo xtask engines"]
fn a_container_is_changed_shown_committed_and_run_again() {
    require!(Union, Podman);
    let scratch = scratch();
    let store = Store::with_base(scratch.path());
    store.run(&["--name=changed"], "localhost/base", CHANGES);
    let shown = store.podman(&["diff", "changed"]);
    let shown: std::collections::BTreeSet<&str> = shown.lines().collect();
    for line in ["C /etc", "A /etc/new", "D /etc/shadow", "D /usr/share/doc", "A /srv/doc", "C /etc/passwd"] {
        assert!(shown.contains(line), "podman diff lacks {line:?}: {shown:#?}");
    }
    store.podman(&["commit", "-q", "changed", "localhost/committed"]);
    let answer = store.run(&["--rm"], "localhost/committed", CHECKS);
    let answer: Vec<&str> = answer.lines().collect();
    assert_eq!(answer, ["new-line", "renamed", "linked", "owned", "capable", "gone"], "the committed image");
    store.podman(&["rm", "-f", "changed"]);
    store.remove();
}

/// What a container does to its image.
const CHANGES: &str = "set -e; echo new-line >>/etc/passwd; echo x >/etc/new; rm /etc/shadow; mv /usr/share/doc /srv/doc; \
    cp /etc/hostname.base /etc/one; ln /etc/one /etc/linked; chown 33:34 /etc/group; cp /bin/cat /bin/capable; setcap cap_net_raw+ep /bin/capable";

/// Says what is left of it.
const CHECKS: &str = "tail -n1 /etc/passwd; [ -d /srv/doc/base-files ] && [ ! -e /usr/share/doc ] && echo renamed; \
    [ $(stat -c %h /etc/linked) = 2 ] && [ /etc/linked -ef /etc/one ] && echo linked; \
    [ $(stat -c %u:%g /etc/group) = 33:34 ] && echo owned; getcap /bin/capable | grep -q net_raw && echo capable; \
    [ ! -e /etc/shadow ] && echo gone";

#[test]
#[ignore = "minutes, needs podman and buildah: cargo xtask engines"]
fn an_overlay_volume_leaves_its_source_alone() {
    require!(Union, Podman);
    let scratch = scratch();
    let store = Store::with_base(scratch.path());
    let plain = scratch.path().join("source");
    std::fs::create_dir(&plain).unwrap();
    std::fs::write(plain.join("kept"), "old").unwrap();
    let container = store.buildah("from localhost/base").trim().to_owned();
    let volume = format!("{}:/v:O", plain.display());
    let script = "echo new >/v/kept; echo x >/v/made; cat /v/kept";
    let said =
        store.buildah(&format!("run --isolation=chroot -v '{volume}' {container} -- sh -c '{script}'"));
    assert_eq!(said.trim(), "new");
    assert_eq!(std::fs::read_to_string(plain.join("kept")).unwrap(), "old");
    assert!(!plain.join("made").exists(), "the volume's source was written");
    store.buildah(&format!("rm {container}"));
    let volume = format!("-v={}:/v:O", plain.display());
    let said = store.run(&["--rm", &volume], "localhost/base", script);
    assert_eq!(said.trim(), "new");
    assert_eq!(std::fs::read_to_string(plain.join("kept")).unwrap(), "old");
    store.remove();
}

#[test]
#[ignore = "minutes, needs podman and buildah: cargo xtask engines"]
fn twenty_containers_of_one_image_run_at_once() {
    require!(Union, Podman);
    let scratch = scratch();
    let store = Store::with_base(scratch.path());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..CONTAINERS)
            .map(|number| {
                let store = &store;
                scope.spawn(move || {
                    let script = format!(
                        "set -e; echo {number} >/etc/number; mv /usr/share/doc /doc; chmod -R g+w /etc; \
                         for i in $(seq 200); do echo $i >/srv/$i; done; rm -r /srv; cat /etc/number"
                    );
                    store.run(&["--rm"], "localhost/base", &script)
                })
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap().trim(), number.to_string());
        }
    });
    assert_eq!(store.mounts_left(), Vec::<String>::new(), "mounts stay behind");
    store.remove();
}

#[test]
#[ignore = "minutes, needs podman and buildah: cargo xtask engines"]
fn as_an_ordinary_user() {
    require!(Union, Podman, Root, Tester);
    let tar = base();
    let as_user = |test: &str| run_measurement(Some(Role::Plain), test, &[(image::BASE, tar.as_os_str())]);
    as_user("an_image_built_on_the_union_equals_one_built_on_plain_copies");
    as_user("a_container_is_changed_shown_committed_and_run_again");
    as_user("an_overlay_volume_leaves_its_source_alone");
    as_user("twenty_containers_of_one_image_run_at_once");
}
