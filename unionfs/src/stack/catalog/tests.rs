//! Catalogs as a union uses them, on layers on disk.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::options::{CatalogPolicy, MountOptions};
use crate::request::{Attr, Fh, FileKind, NodeId, Timestamp};
use crate::union::Union;

struct Layers {
    scratch: tempfile::TempDir,
    options: MountOptions,
}

/// Two lowers that share directories, with whiteouts, an opaque directory, links and a device.
fn layers() -> Layers {
    let scratch = tempfile::tempdir().unwrap();
    let lowerdir: Vec<PathBuf> = ["upper-most", "bottom"].map(|name| scratch.path().join(name)).to_vec();
    let [top, bottom] = lowerdir.as_slice() else { unreachable!() };
    for dir in ["top/d", "bottom/d/deep", "bottom/opaque", "top/opaque"] {
        let dir = dir.replace("top/", "upper-most/");
        std::fs::create_dir_all(scratch.path().join(dir)).unwrap();
    }
    std::fs::write(top.join("d/a"), "from the top").unwrap();
    std::fs::write(top.join("d/.wh.gone"), "").unwrap();
    std::fs::write(top.join("opaque/.wh..wh..opq"), "").unwrap();
    for name in ["d/a", "d/b", "d/gone", "d/deep/c", "opaque/hidden", "e"] {
        std::fs::write(bottom.join(name), format!("{name} at the bottom")).unwrap();
    }
    std::fs::hard_link(bottom.join("e"), bottom.join("f")).unwrap();
    std::os::unix::fs::symlink("d/a", bottom.join("link")).unwrap();
    let options = MountOptions { catalog: CatalogPolicy::Require, ..MountOptions::new(lowerdir, None) };
    Layers { scratch, options }
}

impl Layers {
    fn build(&self) {
        for layer in &self.options.lowerdir {
            build(layer).unwrap();
        }
    }

    fn open(&self, catalog: CatalogPolicy) -> Result<Union> {
        Union::open(&MountOptions { catalog, ..self.options.clone() })
    }

    fn bottom(&self, name: &str) -> PathBuf {
        self.scratch.path().join("bottom").join(name)
    }
}

/// Everything that a tree shows, a line for each object.
fn shown(union: &Union) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![(NodeId::ROOT, String::new())];
    while let Some((node, path)) = pending.pop() {
        let fh = union.opendir(node).unwrap();
        let mut names = Vec::new();
        union
            .readdir(node, fh, 0, &mut |entry| {
                names.push((entry.name.to_vec(), entry.ino));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        union.releasedir(fh);
        names.retain(|(name, _)| name != b"." && name != b"..");
        names.sort();
        for (name, ino) in names {
            let entry = union.lookup(node, &name).unwrap();
            let path = format!("{path}/{}", name.escape_ascii());
            let data = match entry.attr.kind {
                FileKind::Regular => content(union, entry.node).unwrap(),
                FileKind::Symlink => union.readlink(entry.node).unwrap(),
                _ => Vec::new(),
            };
            // Reading changes the time of access on the layer; no union shows that reliably.
            let timeless = |attr: Attr| Attr { atime: Timestamp::default(), ..attr };
            let attr = timeless(entry.attr);
            assert_eq!(timeless(union.getattr(entry.node, None).unwrap()), attr, "{path}");
            assert_eq!(ino, entry.attr.ino, "{path}");
            lines.push(format!("{path} {attr:?} {}", data.escape_ascii()));
            if entry.attr.kind == FileKind::Directory {
                pending.push((entry.node, path));
            }
        }
    }
    lines
}

fn content(union: &Union, node: NodeId) -> Result<Vec<u8>> {
    let mut data = vec![0; 4096];
    let len = union.read(node, None::<Fh>, 0, &mut data)?;
    data.truncate(len);
    Ok(data)
}

#[test]
fn a_tree_with_catalogs_is_the_tree_without() {
    let layers = layers();
    let without = shown(&layers.open(CatalogPolicy::Auto).unwrap());
    let missing = layers.open(CatalogPolicy::Require).unwrap_err();
    assert!(missing.to_string().contains("there is none"), "{missing}");
    layers.build();
    let union = layers.open(CatalogPolicy::Require).unwrap();
    assert_eq!(shown(&union), without);
    assert!(union.notices().iter().any(|notice| notice == "catalogs: 2 of 2 lower layers"));
    assert_eq!(shown(&layers.open(CatalogPolicy::Off).unwrap()), without);
}

#[test]
fn a_changed_directory_is_read_from_the_layer() {
    let layers = layers();
    layers.build();
    std::fs::write(layers.bottom("d/deep/new"), "new").unwrap();
    std::fs::remove_file(layers.bottom("d/deep/c")).unwrap();
    std::fs::set_permissions(layers.bottom("opaque"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    let with = shown(&layers.open(CatalogPolicy::Require).unwrap());
    assert_eq!(with, shown(&layers.open(CatalogPolicy::Off).unwrap()));
    assert!(with.iter().any(|line| line.starts_with("/d/deep/new ")));
}

#[test]
fn a_catalog_of_another_or_changed_root_does_not_count() {
    let layers = layers();
    layers.build();
    std::fs::write(layers.bottom("new"), "").unwrap();
    let error = layers.open(CatalogPolicy::Require).unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
    let union = layers.open(CatalogPolicy::Auto).unwrap();
    assert!(union.lookup(NodeId::ROOT, b"new").is_ok());
    assert!(union.notices().iter().any(|notice| notice.contains("bottom is not used")));
    let path = path_of(&layers.bottom("")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let error = layers.open(CatalogPolicy::Require).unwrap_err();
    assert!(error.to_string().contains("others could have written it"), "{error}");
}

#[test]
fn a_file_that_changed_in_place_is_an_error_and_not_wrong_data() {
    let layers = layers();
    layers.build();
    let union = layers.open(CatalogPolicy::Require).unwrap();
    let d = union.lookup(NodeId::ROOT, b"d").unwrap().node;
    let b = union.lookup(d, b"b").unwrap();
    std::fs::write(layers.bottom("d/b"), "longer than it was when the catalog was made").unwrap();
    let error = content(&union, b.node).unwrap_err();
    assert_eq!(error.errno(), Errno::STALE);
    assert_eq!(content(&union, union.lookup(d, b"a").unwrap().node).unwrap(), b"from the top");
    assert_eq!(content(&union, b.node).unwrap_err().errno(), Errno::STALE, "also the second time");
}

#[test]
fn nothing_unfinished_stays_beside_a_layer() {
    let layers = layers();
    layers.build();
    layers.build();
    let mut names: Vec<_> =
        std::fs::read_dir(layers.scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bottom", "bottom.catalog", "upper-most", "upper-most.catalog"]);
    assert!(build(&layers.bottom("e")).is_err(), "a file is no layer");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Decay is noticed by the checksums: the tree is the same, read from the layers where a catalog is damaged.
    #[test]
    fn a_damaged_catalog_never_shows_a_wrong_tree(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let layers = layers();
        let without = shown(&layers.open(CatalogPolicy::Off).unwrap());
        build(&layers.bottom("")).unwrap();
        let path = path_of(&layers.bottom("")).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, flip) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, bytes).unwrap();
        prop_assert_eq!(shown(&layers.open(CatalogPolicy::Auto).unwrap()), without);
    }
}

/// What is made in a layer.
#[derive(Clone, Debug)]
enum Made {
    Directory,
    File,
    Whiteout,
    /// A file `.wh.NAME`.
    DotWhiteout,
    /// A directory that hides those below it.
    Opaque,
    /// A directory that goes on below elsewhere.
    Redirect(&'static str),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn make(path: &Path, name: &str, made: &Made) -> std::io::Result<()> {
    let mark = |attribute: &str, value: &str| {
        std::fs::create_dir_all(path.join(name))?;
        let dir = std::fs::File::open(path.join(name))?;
        let name = format!("user.overlay.{attribute}");
        Ok(sys::xattr::set(dir.as_fd(), name.as_bytes(), value.as_bytes(), 0)?)
    };
    std::fs::create_dir_all(path)?;
    match made {
        Made::Directory => std::fs::create_dir(path.join(name)),
        Made::File => std::fs::write(path.join(name), path.as_os_str().as_encoded_bytes()),
        Made::Whiteout => {
            let device = rustix::fs::FileType::CharacterDevice;
            Ok(rustix::fs::mknodat(CWD, path.join(name), device, Mode::empty(), 0)?)
        }
        Made::DotWhiteout => std::fs::write(path.join(format!(".wh.{name}")), ""),
        Made::Opaque => mark("opaque", "y"),
        Made::Redirect(target) => mark("redirect", target),
    }
}

/// Everything that lookups find without a listing.
fn found(union: &Union) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![(NodeId::ROOT, String::new())];
    while let Some((node, path)) = pending.pop() {
        for name in NAMES {
            let path = format!("{path}/{name}");
            match union.lookup(node, name.as_bytes()) {
                Ok(entry) => {
                    lines.push(format!("{path} {:?} {}", entry.attr.kind, entry.attr.ino));
                    if entry.attr.kind == FileKind::Directory {
                        pending.push((entry.node, path));
                    }
                }
                Err(error) => lines.push(format!("{path} {:?}", error.errno())),
            }
        }
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// A mount that remembers no names asks every layer; it is the judge.
    #[test]
    fn names_of_many_layers_known_at_once_are_what_asking_each_layer_finds(
        objects in prop::collection::vec(
            (
                0_usize..12,
                prop::collection::vec(prop::sample::select(&NAMES[..]), 0..3),
                prop::sample::select(&NAMES[..]),
                prop_oneof![
                    6 => Just(Made::Directory),
                    4 => Just(Made::File),
                    1 => Just(Made::Whiteout),
                    1 => Just(Made::DotWhiteout),
                    1 => Just(Made::Opaque),
                    1 => prop::sample::select(&["b", "/c", "/a/b", "/d/a"][..]).prop_map(Made::Redirect),
                ],
            ),
            60..200,
        ),
        layers in 1_usize..12,
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let lowerdir: Vec<PathBuf> =
            (0..layers).map(|layer| scratch.path().join(layer.to_string())).collect();
        lowerdir.iter().for_each(|layer| std::fs::create_dir(layer).unwrap());
        for (layer, path, name, made) in objects {
            // Where something else is in the way already, there is one object less.
            make(&scratch.path().join((layer % layers).to_string()).join(path.join("/")), name, &made).ok();
        }
        let options = MountOptions { userxattr: true, ..MountOptions::new(lowerdir.clone(), None) };
        let open = |catalog, timeout| Union::open(&MountOptions { catalog, timeout, ..options.clone() }).unwrap();
        let judge = found(&open(CatalogPolicy::Off, 0.0));
        let listed = shown(&open(CatalogPolicy::Off, 0.0));
        prop_assert_eq!(&found(&open(CatalogPolicy::Off, 1.0)), &judge);
        prop_assert_eq!(&shown(&open(CatalogPolicy::Off, 1.0)), &listed);
        lowerdir.iter().for_each(|layer| drop(build(layer).unwrap()));
        let union = open(CatalogPolicy::Require, 1.0);
        prop_assert_eq!(&found(&union), &judge);
        prop_assert_eq!(&shown(&union), &listed);
        prop_assert_eq!(&shown(&open(CatalogPolicy::Require, 1.0)), &listed);
    }
}
