//! `unionfs merge`: the result is what the union shows, alone or above the layers that it was made for.

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::oracle::KernelOverlay;
use e2e::require;
use e2e::tree::LayerTree;

use crate::{changed, options_text, seeds, shown, snapshot, succeed, text, tool};

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
