//! `unionfs merge`: the result is what the union shows, alone or above the layers that it was made for.

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::LayerTree;

use crate::{Changed, changed, changed_with, options_text, seeds, shown, snapshot, succeed, text, tool};

#[test]
fn layers_merged_into_one_are_the_union() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let options = options_text(&changed.layers.options());
        let into = scratch.path().join("whole");
        succeed(&["merge", "-o", &options, "--into", &text(&into)]);
        let lines = changed.after.diff(&snapshot(&into), ("union", "merged"));
        assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
    }
}

#[test]
fn layers_merged_for_others_below_show_the_union_above_them() {
    require!(Fuse, Union);
    for seed in seeds().filter(|seed| seed % 3 > 0) {
        let scratch = scratch();
        let changed = changed(seed, scratch.path());
        let mut above = changed.layers.clone();
        let below = above.lowers.split_off(1);
        let onto: Vec<String> = below.iter().map(|lower| text(lower)).collect();
        let into = scratch.path().join("merged layer");
        let options = options_text(&above.options());
        succeed(&["merge", "-o", &options, "--onto", &onto.join(":"), "--into", &text(&into)]);
        let mut lowers = vec![into];
        lowers.extend(below);
        let lines =
            changed.after.diff(&shown(lowers.clone(), &scratch.path().join("m")), ("union", "merged"));
        assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
        if e2e::user::is_real_root() && e2e::require::Need::KernelOverlay.missing().is_none() {
            let layers =
                Layers { lowers, upper: None, work: None, extra: String::new(), ..changed.layers.clone() };
            let mut overlay = KernelOverlay::new(layers);
            let lines = changed.after.diff(&snapshot(overlay.root()), ("union", "kernel"));
            overlay.unmount();
            assert!(lines.is_empty(), "seed {seed}, kernel: {}", lines.join("\n"));
        }
    }
}

#[test]
fn an_upper_folds_into_its_lower_and_lowers_stay_as_they_are() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("d/a", "1").file("f", "2").file("same", "3").build(&layers.lowers[0]);
    let before = snapshot(&layers.lowers[0]);
    let mut mounted = Mounted::new(layers.clone());
    std::fs::rename(layers.target.join("d"), layers.target.join("e")).unwrap();
    std::fs::remove_file(layers.target.join("f")).unwrap();
    let want = snapshot(&layers.target);
    let into = scratch.path().join("new");
    let arguments = ["merge", "-o", &options_text(&layers.options()), "--into", &text(&into)];
    let refused = tool(&arguments);
    assert!(
        !refused.status.success() && refused.stderr.escape_ascii().to_string().contains("unmount it first")
    );
    mounted.unmount();
    succeed(&arguments);
    let lines = want.diff(&snapshot(&into), ("union", "merged"));
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    // Once more: what is there is not written over, and nothing stays beside it.
    let again = tool(&arguments);
    assert!(!again.status.success() && again.stderr.escape_ascii().to_string().contains("File exists"));
    assert!(!scratch.path().join(".new.partial").exists());
    let after = snapshot(&layers.lowers[0]);
    assert!(before.diff(&after, ("before", "after")).is_empty());
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("a/b", "1").build(&layers.lowers[0]);
    let into = scratch.path().join("missing/new");
    let output = tool(&["merge", "-o", &options_text(&layers.options()), "--into", &text(&into)]);
    assert!(!output.status.success());
    let output = tool(&["merge", "-o", &options_text(&layers.options())]);
    assert!(output.stderr.escape_ascii().to_string().contains("--into is needed"));
    assert!(!into.exists());
}

/// Returns what a mount with these options shows, or what it says instead.
fn mounted(options: &str, base: &std::path::Path) -> Result<e2e::snapshot::Snapshot, String> {
    let target = base.join("merged");
    let output = e2e::program::run(base, &["-o", options, &text(&target)]);
    let unmount = e2e::program::Unmount(target.clone());
    if !output.status.success() {
        return Err(output.stderr.escape_ascii().to_string());
    }
    let shown = snapshot(&target);
    drop(unmount);
    // The server still holds the workdir for a moment.
    assert!(e2e::program::wait_until(|| e2e::program::servers_of(&target).is_empty()));
    Ok(shown)
}

/// Gives the command that replaces `layer`; returns its arguments.
fn replacing(changed: &Changed, layer: &std::path::Path) -> Vec<String> {
    let options = options_text(&changed.layers.options());
    ["merge", "-o", &options, "--replace", &text(layer)].map(str::to_owned).to_vec()
}

#[test]
fn a_layer_is_replaced_by_what_the_union_shows() {
    require!(Fuse, Union);
    for seed in seeds() {
        let scratch = scratch();
        let options = if seed % 2 == 1 { ",sidecar=on" } else { "" };
        let changed = changed_with(seed, scratch.path(), options);
        let layer = changed.layers.lowers.last().unwrap();
        let before = snapshot(layer);
        let said = succeed(&replacing(&changed, layer));
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with(&format!("lowerdir={},upperdir=", text(layer))), "{said}");
        for options in [said.trim(), &format!("lowerdir={}", text(layer))] {
            let shown = mounted(options, scratch.path()).unwrap();
            let lines = changed.after.diff(&shown, ("union", "merged"));
            assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
        }
        let old = layer.with_extension("old");
        assert!(before.diff(&snapshot(&old), ("before", "old")).is_empty(), "seed {seed}");
        assert_eq!(std::fs::read_dir(changed.layers.upper.as_ref().unwrap()).unwrap().count(), 0);
        let left: Vec<_> = std::fs::read_dir(scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let again = tool(&replacing(&changed, layer));
        assert!(!again.status.success() && again.stderr.escape_ascii().to_string().contains("File exists"));
    }
}

#[test]
fn a_layer_is_replaced_above_others() {
    require!(Fuse, Union);
    for seed in seeds().filter(|seed| seed % 3 > 0) {
        let scratch = scratch();
        let mut changed = changed(seed, scratch.path());
        let below = changed.layers.lowers.split_off(1);
        let layer = changed.layers.lowers[0].clone();
        let mut words = replacing(&changed, &layer);
        words.extend([
            "--onto".to_owned(),
            below.iter().map(|lower| text(lower)).collect::<Vec<_>>().join(":"),
        ]);
        let said = String::from_utf8(succeed(&words)).unwrap();
        let shown = mounted(said.trim(), scratch.path()).unwrap();
        let lines = changed.after.diff(&shown, ("union", "merged"));
        assert!(lines.is_empty(), "seed {seed}: {}", lines.join("\n"));
    }
}

#[test]
fn what_is_not_to_be_replaced_is_refused() {
    require!(Fuse, Union);
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    LayerTree::new().file("a/b", "1").build(&layers.lowers[0]);
    let mut mounted = Mounted::new(layers.clone());
    let options = options_text(&layers.options());
    let refused = |layer: &std::path::Path, word: &str| {
        let output = tool(&["merge", "-o", &options, "--replace", &text(layer)]);
        let said = output.stderr.escape_ascii().to_string();
        assert!(!output.status.success() && said.contains(word), "{said}");
    };
    refused(&layers.lowers[0], "unmount it first");
    mounted.unmount();
    // The upper is free, and the lower is in another mount.
    let other = scratch.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let only_lower = Layers { upper: None, work: None, target: other, ..layers.clone() };
    let mut elsewhere = Mounted::new(only_lower);
    let live = || elsewhere.ctl(&[std::ffi::OsStr::new("layers")]).is_ok();
    assert!(e2e::program::wait_until(live));
    refused(&layers.lowers[0], "as a layer: unmount it first");
    elsewhere.unmount();
    refused(layers.upper.as_ref().unwrap(), "none of the layers");
    refused(&scratch.path().join("missing"), "missing");
    std::fs::create_dir(scratch.path().join("lower0.old")).unwrap();
    refused(&layers.lowers[0], "lower0.old");
    assert_eq!(std::fs::read(layers.lowers[0].join("a/b")).unwrap(), b"1");
}

/// Runs a command and kills it at its `at`th call of one kind of system call; returns whether it was killed.
fn killed_at(call: &str, at: usize, words: &[String]) -> bool {
    let status = std::process::Command::new("strace")
        .args(["-qq", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL:when={at}")])
        .arg(e2e::mounted::union_program())
        .args(words)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

#[test]
fn a_killed_merge_of_lowers_is_not_done_twice() {
    require!(Fuse, Union);
    for at in 1..4 {
        let scratch = scratch();
        let mut layers = Layers::below(scratch.path(), 3);
        (layers.upper, layers.work) = (None, None);
        LayerTree::new().file("top", "1").whiteout("x").build(&layers.lowers[0]);
        LayerTree::new().file("x", "2").file("middle", "3").whiteout("y").build(&layers.lowers[1]);
        LayerTree::new().file("y", "4").file("z", "5").build(&layers.lowers[2]);
        let want = shown(layers.lowers.clone(), &scratch.path().join("m"));
        let below = layers.lowers.split_off(2);
        let changed = Changed { layers: layers.clone(), before: want.clone(), after: want.clone() };
        let mut words = replacing(&changed, &layers.lowers[0]);
        words.extend(["--onto".to_owned(), text(&below[0])]);
        if has_strace() {
            killed_at("renameat2", at, &words);
        }
        let again = tool(&words);
        let said = again.stderr.escape_ascii().to_string();
        assert!(again.status.success() || said.contains("File exists"), "{at}: {said}");
        let now = shown(vec![layers.lowers[0].clone(), below[0].clone()], &scratch.path().join("m"));
        let lines = want.diff(&now, ("before", "after"));
        assert!(lines.is_empty(), "{at}: {}", lines.join("\n"));
        let old = layers.lowers[0].with_extension("old");
        assert!(old.join("top").exists() && !old.join("middle").exists(), "{at}: it is the layer before");
    }
}

fn has_strace() -> bool {
    std::process::Command::new("strace").arg("-V").output().is_ok()
}

/// Returns whether kernel overlayfs mounts these layers.
fn kernel_mounts(layers: &Layers) -> bool {
    let options = options_text(&layers.options());
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&layers.target);
    let mounted = mount.output().unwrap().status.success();
    if mounted {
        e2e::mounted::unmount(&layers.target);
    }
    mounted
}

#[test]
fn a_killed_merge_leaves_the_old_layer_or_the_new_one() {
    require!(Fuse, Union);
    if !has_strace() {
        e2e::require::say("SKIP a_killed_merge_leaves_the_old_layer_or_the_new_one: no strace");
        return;
    }
    // Those that change names, one after the other, and some of the others.
    let rare = ["renameat2", "renameat", "syncfs", "mkdirat", "unlinkat", "fsync"];
    for (round, call) in rare.iter().chain(&["openat", "fchownat", "newfstatat"]).enumerate() {
        let (mut at, mut mid_way) = (1, 0);
        loop {
            let scratch = scratch();
            let changed = changed(round as u64 % 2 * 3, scratch.path());
            let layer = changed.layers.lowers.last().unwrap();
            let words = replacing(&changed, layer);
            let killed = killed_at(call, at, &words);
            let what = format!("{call} {at}");
            let options = options_text(&changed.layers.options());
            match mounted(&options, scratch.path()) {
                Ok(shown) => {
                    let lines = changed.after.diff(&shown, ("union", "killed"));
                    assert!(lines.is_empty(), "{what}: {}", lines.join("\n"));
                }
                Err(said) => {
                    assert!(said.contains("unionfs merge"), "{what}: {said}");
                    assert!(!kernel_mounts(&changed.layers), "{what}: kernel overlayfs mounts it");
                    mid_way += 1;
                }
            }
            if !killed {
                break;
            }
            let again = tool(&words);
            let said = again.stderr.escape_ascii().to_string();
            assert!(again.status.success() || said.contains("File exists"), "{what}: {said}");
            let shown = mounted(&options, scratch.path()).unwrap();
            let lines = changed.after.diff(&shown, ("union", "again"));
            assert!(lines.is_empty(), "{what}: {}", lines.join("\n"));
            at += if rare.contains(call) && at < 8 { 1 } else { 1 + at * 2 / 3 };
        }
        e2e::require::say(&format!("merge killed at {call}: up to call {at}, {mid_way} times in between"));
    }
}
