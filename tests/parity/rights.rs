//! Who may do what, and which bits and capabilities a change takes away: the same calls by several users on the union and on
//! a plain directory.

use std::path::Path;
use std::process::{Command, Stdio};

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::snapshot::Snapshot;
use e2e::tree::LayerTree;
use e2e::user::{Role, run_again};

/// Who acts: a name, and the words that make a command run so.
const ACTORS: [(&str, &[&str]); 5] = [
    ("root", &[]),
    ("owner", &["--reuid=1000", "--regid=1000", "--clear-groups"]),
    ("member", &["--reuid=1001", "--regid=1001", "--groups=2000"]),
    ("peer", &["--reuid=1002", "--regid=2000", "--clear-groups"]),
    ("stranger", &["--reuid=1003", "--regid=1003", "--clear-groups"]),
];

/// Modes of the files, all of user 1000 and group 2000 and writable for others.
const MODES: [u32; 5] = [0o6777, 0o6767, 0o2706, 0o4777, 0o1606];

/// What is done to a file, `$f`.
const CALLS: [(&str, &str); 17] = [
    ("append", "echo x >> $f"),
    ("replace", "echo y > $f"),
    ("empty", ": > $f"),
    ("overwrite", "printf z | dd of=$f conv=notrunc bs=1 status=none"),
    ("shrink", "truncate -s 2 $f"),
    ("grow", "truncate -s 9000 $f"),
    ("allocate", "fallocate -l 5000 $f"),
    ("same-owner", "chown 1000 $f"),
    ("same-group", "chgrp 2000 $f"),
    ("own-group", "chgrp $(id -g) $f"),
    ("give-away", "chown 1003:1003 $f"),
    ("set-id", "chmod 6755 $f"),
    ("set-gid", "chmod g+s,g-x $f"),
    ("touch", "touch -d @1000000000 $f"),
    ("attribute", "setfattr -n user.a -v b $f"),
    ("acl", "setfacl -m u:1003:rwx $f"),
    ("remove", "rm -f $f"),
];

/// What is done in a directory, `$d`; `$me` is who does it.
const DIRECTORY_CALLS: [(&str, &str); 10] = [
    ("file", "echo x > $d/$me.file"),
    ("dir", "mkdir $d/$me.dir && echo y > $d/$me.dir/f && mkdir $d/$me.dir/inner"),
    ("wide", "(umask 0; echo x > $d/$me.wide; mkdir $d/$me.wide.dir)"),
    ("fifo", "mkfifo -m 640 $d/$me.fifo"),
    ("link", "ln -s target $d/$me.link"),
    ("set-gid", "echo x > $d/$me.sgid && chmod 2755 $d/$me.sgid && chmod g+s $d/$me.dir"),
    ("steal", "mv $d/theirs $d/$me.theirs && mv $d/$me.theirs $d/theirs"),
    ("name", "ln $d/theirs $d/$me.name"),
    ("remove", "rm -rf $d/empty.$me"),
    ("over", "echo z > $d/$me.new && mv -f $d/$me.new $d/over.$me"),
];

fn file(mode: u32, call: &str, actor: &str) -> String {
    format!("files/{mode:04o}-{call}-{actor}")
}

/// The directories: plain, sticky, set-gid, with default ACLs.
fn tree() -> LayerTree {
    let mut tree = LayerTree::new().dir("files").mode("files", 0o777);
    for (actor, _) in ACTORS {
        for (mode, (call, _)) in MODES.into_iter().flat_map(|mode| CALLS.map(|call| (mode, call))) {
            let name = file(mode, call, actor);
            tree = tree.file(&name, "old data").mode(&name, mode).owner(&name, 1000, 2000);
        }
    }
    for (name, mode) in
        [("plain", 0o777), ("sticky", 0o1777), ("set-gid", 0o2777), ("both", 0o3775), ("inherits", 0o2777)]
    {
        tree = tree.dir(name).mode(name, mode).owner(name, 1002, 2000);
        let inner = |file: &str| format!("{name}/{file}");
        tree =
            tree.file(inner("theirs"), "1").mode(inner("theirs"), 0o666).owner(inner("theirs"), 1000, 1000);
        for (actor, _) in ACTORS {
            let (empty, over) = (inner(&format!("empty.{actor}")), inner(&format!("over.{actor}")));
            tree = tree.dir(&empty).mode(&empty, 0o777).owner(&empty, 1000, 1000);
            tree = tree.file(&over, "2").mode(&over, 0o666).owner(&over, 1000, 1000);
        }
    }
    tree
}

/// What only programs can set on a built tree.
fn complete(root: &Path) {
    let text = "setfacl -dm u::rwx,g::r-x,o::r,u:1003:rwx,g:1001:rw,m::rwx inherits
        for f in files/1606-*; do setcap cap_net_raw=ep $f; done";
    assert!(shell(&[], root, text).0);
}

fn shell(words: &[&str], directory: &Path, text: &str) -> (bool, String) {
    let mut command = Command::new(if words.is_empty() { "sh" } else { "setpriv" });
    if !words.is_empty() {
        command.args(words).args(["--", "sh"]);
    }
    command.args(["-c", text]).current_dir(directory).stderr(Stdio::null());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// Lets everybody do everything below `root`; returns a line for each call with its outcome.
fn act(root: &Path) -> String {
    let mut said = String::new();
    for (actor, words) in ACTORS {
        let mut text = String::from("umask 027\n");
        for (mode, (call, what)) in MODES.into_iter().flat_map(|mode| CALLS.map(|call| (mode, call))) {
            let name = file(mode, call, actor);
            text.push_str(&format!("f={name}; {{ {what}; }}; echo $f: $?\n"));
        }
        for directory in ["plain", "sticky", "set-gid", "both", "inherits"] {
            for (call, what) in DIRECTORY_CALLS {
                text.push_str(&format!("d={directory}; me={actor}; {{ {what}; }}; echo $d {call} $me: $?\n"));
            }
        }
        said.push_str(&shell(words, root, &text).1);
    }
    said
}

fn compare(options: &str) {
    let scratch = scratch();
    let mut layers = Layers::below(scratch.path(), 1);
    layers.extra.push_str(options);
    let plain = scratch.path().join("plain");
    LayerTree::new().build(layers.upper.as_ref().unwrap());
    for root in [&layers.lowers[0], &plain] {
        tree().build(root);
        complete(root);
    }
    let mut mounted = Mounted::new(layers);
    // Once on lower files, and again on what is in the upper then.
    for turn in ["lower", "upper"] {
        let (ours, oracle) = (act(mounted.root()), act(&plain));
        let differ: Vec<_> = ours.lines().zip(oracle.lines()).filter(|(a, b)| a != b).collect();
        assert!(
            differ.is_empty() && ours.len() == oracle.len(),
            "{options} {turn}: (union, plain) {differ:#?}"
        );
        for again in [false, true] {
            let [left, right] = [mounted.root(), plain.as_path()].map(|root| {
                let mut snapshot = Snapshot::take(root).unwrap();
                snapshot.faults.clear();
                snapshot
            });
            let lines = left.diff(&right, ("union", "plain"));
            assert!(lines.is_empty(), "{options} {turn}, remounted: {again}:\n{}", lines.join("\n"));
            mounted.remount();
        }
        for root in [mounted.root(), &plain] {
            let mut reset = String::from("chown 1000:2000 files/*");
            MODES.iter().for_each(|mode| reset.push_str(&format!(" && chmod {mode:o} files/{mode:04o}-*")));
            assert!(shell(&[], root, &reset).0);
        }
    }
}

#[test]
fn rights_and_what_a_change_takes_away_are_those_of_a_plain_directory() {
    require!(Fuse, Union);
    if !rustix::process::geteuid().is_root() || e2e::user::owned_ids() < 2001 {
        return e2e::require::skip("parity::rights", "needs root of a namespace with 2001 ids");
    }
    for options in ["", ",xattr_permissions=2", ",data=handles"] {
        compare(options);
    }
}

#[test]
fn as_root_of_a_user_namespace() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "rights_and_what");
}
