//! Whose rights count: of who asks, and of the server.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use e2e::mounted::{Layers, Mounted, scratch, union_program};
use e2e::require;
use e2e::tree::LayerTree;
use e2e::user::install;

use crate::Fixture;

/// Runs a shell command as the user `tester`.
fn as_tester(command: &str) -> Output {
    let words = ["--reuid=tester", "--regid=tester", "--init-groups", "--", "sh", "-c", command];
    Command::new("setpriv").args(words).current_dir("/").output().unwrap()
}

fn shell(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[test]
fn the_server_of_an_ordinary_user_has_only_that_users_rights() {
    require!(Fuse, Union, Root, Tester);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = LayerTree::new().file("open", "1").file("closed", "2").mode("closed", 0o600);
    tree.mode("open", 0o666).build(&layers.lowers[0]);
    let tester = nix::unistd::User::from_name("tester").unwrap().unwrap().uid.as_raw();
    for path in [layers.upper.as_ref().unwrap(), layers.work.as_ref().unwrap(), &layers.target] {
        chown(path, Some(tester), Some(tester)).unwrap();
    }
    let (program, union) = (scratch.path().join("as-tester"), scratch.path().join("unionfs"));
    install(&union_program(), &union);
    let script = format!(
        "#!/bin/sh\nexec setpriv --reuid=tester --regid=tester --init-groups -- {} \"$@\"\n",
        shell(&union)
    );
    std::fs::write(scratch.path().join("text"), script).unwrap();
    install(&scratch.path().join("text"), &program);
    let mut mounted = Mounted::with(&program, layers.clone());
    let (open, closed) = (shell(&mounted.root().join("open")), shell(&mounted.root().join("closed")));
    // A file that only root may read cannot be read through the union, though the union shows it.
    let output = as_tester(&format!("stat -c %u {closed} && cat {closed}"));
    assert_eq!((output.status.success(), output.stdout.as_slice()), (false, &b"0\n"[..]));
    // What is copied up belongs to the user from then on.
    assert!(as_tester(&format!("echo x >> {open}")).status.success());
    let upper = std::fs::metadata(layers.upper.as_ref().unwrap().join("open")).unwrap();
    assert_eq!((upper.uid(), upper.size()), (tester, 3));
    mounted.remount();
    let output = as_tester(&format!("stat -c %u {open}"));
    assert_eq!(output.stdout, format!("{tester}\n").into_bytes());
}

#[test]
fn acls_are_enforced_unless_noacl_leaves_them_to_be_shown() {
    require!(Fuse, Union, Root, Tester);
    for (option, allowed) in [("", true), (",noacl", false)] {
        let union = Fixture::new(&[LayerTree::new().file("f", "1").mode("f", 0o600)], option);
        let set = Command::new("setfacl").args(["-m", "u:tester:r"]).arg(union.at("f")).status().unwrap();
        assert!(set.success());
        let shown = Command::new("getfacl").arg("-cp").arg(union.at("f")).output().unwrap();
        assert!(shown.stdout.windows(13).any(|line| line == b"user:tester:r"), "{option}");
        let read = as_tester(&format!("cat {}", shell(&union.at("f"))));
        assert_eq!(read.status.success(), allowed, "{option}");
    }
}
