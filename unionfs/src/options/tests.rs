use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::idmap::IdRange;

fn parse(text: &str) -> MountOptions {
    let (options, warnings) = MountOptions::parse([text]).unwrap();
    assert_eq!(warnings, [], "{text}");
    options
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

#[test]
fn layers_are_split_and_unescaped() {
    for (text, lower, data) in [
        ("lowerdir=/a:/b", &["/a", "/b"][..], &[][..]),
        ("lowerdir=/a\\:b:/c", &["/a:b", "/c"], &[]),
        ("lowerdir=/a\\\\:b:/c", &["/a:b", "/c"], &[]),
        ("lowerdir=/a\\,b:/c", &["/a,b", "/c"], &[]),
        ("lowerdir=/a\\054b\\072c\\134", &["/a,b:c\\"], &[]),
        ("lowerdir=/a\\134:/b", &["/a\\", "/b"], &[]),
        ("lowerdir=\"/a,b\":/c", &["/a,b", "/c"], &[]),
        ("lowerdir=\"/a", &["\"/a"], &[]),
        ("lowerdir=/a\"b:/c", &["/a\"b", "/c"], &[]),
        ("lowerdir=:/a:", &["/a"], &[]),
        ("lowerdir=/a:/b::/c::/d", &["/a", "/b"], &["/c", "/d"]),
        ("lowerdir=L/../diff1:../x", &["L/../diff1", "../x"], &[]),
        ("lowerdir=/a,lowerdir=/b", &["/b"], &[]),
        ("lowerdir=/a,lowerdir+=/b:c,lowerdir+=/d\\,e\\f,datadir+=/g", &["/a", "/b:c", "/d,e\\f"], &["/g"]),
        ("lowerdir=/a=b", &["/a=b"], &[]),
    ] {
        let options = parse(text);
        assert_eq!((options.lowerdir, options.datadir), (paths(lower), paths(data)), "{text}");
    }
}

#[test]
fn upper_and_work_are_unescaped_like_layers() {
    let options = parse("upperdir=/u\\:1:2\\,3,workdir=/w\\\\:4");
    assert_eq!(options.upperdir.as_deref(), Some(Path::new("/u:1:2,3")));
    assert_eq!(options.workdir.as_deref(), Some(Path::new("/w:4")));
}

#[test]
fn a_quoted_context_is_one_option() {
    let options = parse("context=\"system_u:object_r:t:s0:c1,c2\",ro");
    assert_eq!(options.security.context, Some(OsString::from("system_u:object_r:t:s0:c1,c2")));
    assert!(options.flags.read_only);
}

#[test]
fn pieces_are_joined_and_the_last_value_wins() {
    let (options, warnings) =
        MountOptions::parse(["lowerdir=/a,fsync=0", "timeout=2.5,fsync=strict"]).unwrap();
    assert_eq!((options.fsync, options.timeout), (FsyncPolicy::Strict, 2.5));
    assert_eq!(warnings, []);
}

#[test]
fn features_have_typed_values() {
    let options =
        parse("redirect_dir=nofollow,index=off,metacopy=on,nfs_export=on,verity=require,uuid=null,xino=on");
    assert_eq!(options.redirect_dir, Some(RedirectDir::NoFollow));
    assert_eq!((options.index, options.metacopy, options.nfs_export), (Some(false), Some(true), true));
    assert_eq!((options.verity, options.uuid, options.xino), (Verity::Require, UuidPolicy::Null, Xino::On));
    for (text, want) in [
        ("fsync=0", FsyncPolicy::Never),
        ("sync=0", FsyncPolicy::Never),
        ("fsync=1", FsyncPolicy::Auto),
        ("fsync=volatile", FsyncPolicy::Volatile),
        ("volatile", FsyncPolicy::Volatile),
        ("sync", FsyncPolicy::Auto),
    ] {
        assert_eq!(parse(text).fsync, want, "{text}");
    }
    assert!(parse("sync").flags.sync);
    for (text, want) in [
        ("", CopyUpMode::Auto),
        ("copyup=auto", CopyUpMode::Auto),
        ("copyup=full", CopyUpMode::Full),
        ("copyup=range", CopyUpMode::Range(CopyUpMode::LARGE)),
        ("copyup=range:65536", CopyUpMode::Range(65536)),
    ] {
        assert_eq!(parse(text).copy_up, want, "{text}");
    }
}

#[test]
fn ids_are_mapped_and_squashed() {
    let options = parse("uidmapping=:100000:0:65536,gidmapping=1:2:3:4:5:6,squash_to_uid=7");
    assert_eq!(options.uid_map.ranges(), [IdRange { disk: 100_000, shown: 0, len: 65536 }]);
    assert_eq!(options.gid_map.ranges().len(), 2);
    assert_eq!(options.uid_view(65534).shown(100_000), 7);
    assert_eq!(parse("squash_to_root,squash_to_gid=9").gid_view(65534).shown(1), 9);
    assert_eq!(parse("squash_to_root").uid_view(65534).shown(1), 0);
}

#[test]
fn flags_are_taken_in_their_order() {
    let flags = parse("ro,nosuid,dev,noexec,noatime,rw,exec,relatime,nodiratime").flags;
    let want = MountFlags {
        nosuid: Some(true),
        nodev: Some(false),
        atime: Some(AtimeMode::Relatime),
        nodiratime: true,
        ..MountFlags::default()
    };
    assert_eq!(flags, want);
}

#[test]
fn harmless_words_are_silent_and_unknown_words_are_told() {
    let text = "lowerdir=/a,,private,rw,lazytime,defaults,nofail,_netdev,x-systemd.automount,threaded=1,clone_fd,\
                fast_ino=0,splice_read,kernel_cache,max_read=131072,max_write,override_creds";
    parse(text);
    let (_, warnings) = MountOptions::parse(["lowerdir=/a,frobnicate,what=1"]).unwrap();
    let lines: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["unknown argument ignored: frobnicate", "unknown argument ignored: what=1"]);
}

#[test]
fn malformed_values_are_fatal_and_name_the_option() {
    for text in [
        "timeout=abc",
        "timeout=",
        "timeout=-1",
        "timeout=nan",
        "fsync=2",
        "copyup=",
        "copyup=range:0",
        "copyup=range:1k",
        "writeback=x",
        "squash_to_uid=-1",
        "squash_to_gid=99999999999",
        "uidmapping=1:2",
        "xattr_permissions=3",
        "redirect_dir=maybe",
        "index=1",
        "max_write=12",
        "max_read=k",
        "upperdir=",
        "lowerdir=/a::/b:/c",
        "lowerdir=/a:::/b",
        "lowerdir=//plugin/data",
        "lowerdir=/a:://plugin/data/path",
    ] {
        let error = MountOptions::parse([text]).unwrap_err().to_string();
        assert!(error.contains(&format!("option \"{text}\": ")), "{error}");
    }
}

#[test]
fn two_slashes_name_a_plugin_only_where_layers_are_listed() {
    let options = parse(
        "lowerdir=/a://name/data/path/of/it:\\057/b,lowerdir+=//c,plugins=/x.so:/y.so,upperdir=//u,workdir=/w",
    );
    assert_eq!(options.lowerdir, ["/a", "//name/data/path/of/it", "/b", "/c"].map(PathBuf::from));
    let layer = PluginLayer::named_by(&options.lowerdir[1]).unwrap();
    assert_eq!((&*layer.name, &*layer.data, &*layer.path), (&b"name"[..], &b"data"[..], &b"path/of/it"[..]));
    assert_eq!(PluginLayer::named_by(&options.lowerdir[0]), None);
    assert_eq!(options.plugins, Some(["/x.so", "/y.so"].map(PathBuf::from).to_vec()));
    assert_eq!(
        (parse("lowerdir=/a,plugins=").plugins, parse("lowerdir=/a").plugins),
        (Some(Vec::new()), None)
    );
}

#[test]
fn options_that_need_each_other_are_checked_together() {
    for (text, want) in [
        ("", "lowerdir not specified"),
        ("lowerdir=/a,upperdir=/u", "workdir not specified"),
        ("lowerdir=/a,workdir=/w", "upperdir not specified"),
    ] {
        let error = parse(text).validate().unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
    assert_eq!(parse("lowerdir=/a,upperdir=/u,workdir=/w").validate(), Ok(vec![]));
}

#[test]
fn options_without_effect_are_told_and_those_with_one_are_not() {
    let told = |text: &str| -> Vec<String> {
        parse(text).validate().unwrap().iter().map(|warning| warning.to_string()).collect()
    };
    for text in [
        "index=on,metacopy=on,redirect_dir=on,xino=on,xino=auto,uuid=null",
        "index=off,metacopy=off,redirect_dir=off",
        "xino=off,uuid=off,static_nlink,verity=on",
    ] {
        assert_eq!(told(&format!("lowerdir=/a,{text}")), [""; 0], "{text}");
    }
    for word in ["nfs_export=on", "uuid=on"] {
        let told = told(&format!("lowerdir=/a,{word}"));
        assert!(told.len() == 1 && told[0].contains(", continuing without: "), "{word}: {told:?}");
    }
}

#[test]
fn bytes_that_are_no_text_survive() {
    let path = PathBuf::from(OsString::from_vec(vec![b'/', 0xff, b'\n', b',', b'"', b' ']));
    let options = MountOptions::new([path.clone()], None);
    assert_eq!(options.to_string(), "lowerdir=/\\377\\012\\054\\042\\040");
    assert_eq!(parse(&options.to_string()).lowerdir, [path]);
    assert!(OsString::from(options.to_string()).as_bytes().is_ascii());
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    let byte = prop_oneof![prop::sample::select(&b"\\,:\"/ =a1+"[..]), 1..=255_u8];
    prop::collection::vec(byte, 1..12).prop_map(|bytes| OsString::from_vec(bytes).into())
}

fn any_map() -> impl Strategy<Value = IdMap> {
    let range = (0..1000_u32, 0..1000_u32, 1..1000_u32);
    prop::collection::vec(range, 0..3).prop_map(|ranges| {
        let ranges = ranges.into_iter().map(|(disk, shown, len)| IdRange { disk, shown, len });
        IdMap::new(ranges.collect()).unwrap()
    })
}

fn any_flags() -> impl Strategy<Value = MountFlags> {
    let atime = [
        None,
        Some(AtimeMode::NoAtime),
        Some(AtimeMode::Atime),
        Some(AtimeMode::Relatime),
        Some(AtimeMode::StrictAtime),
    ];
    let switches = any::<[bool; 5]>();
    (switches, any::<[Option<bool>; 2]>(), prop::sample::select(atime.to_vec())).prop_map(
        |([read_only, noexec, nodiratime, sync, dirsync], [nosuid, nodev], atime)| MountFlags {
            read_only,
            nosuid,
            nodev,
            noexec,
            atime,
            nodiratime,
            sync,
            dirsync,
        },
    )
}

/// A layer that is a directory.
fn any_directory() -> impl Strategy<Value = PathBuf> {
    any_path().prop_filter("two slashes", |path| !path.as_os_str().as_bytes().starts_with(b"//"))
}

fn any_layer() -> impl Strategy<Value = PathBuf> {
    let of_a_plugin = any_path()
        .prop_map(|path| OsString::from_vec([b"//name/data/", path.as_os_str().as_bytes()].concat()).into());
    prop_oneof![4 => any_directory(), 1 => of_a_plugin]
}

prop_compose! {
    fn any_layers()(
        lowerdir in prop::collection::vec(any_layer(), 0..4),
        datadir in prop::collection::vec(any_directory(), 0..3),
        plugins in prop::option::of(prop::collection::vec(any_path(), 0..3)),
        upperdir in prop::option::of(any_path()),
        workdir in prop::option::of(any_path()),
        hidden in prop::collection::vec(any_path(), 0..3),
        fsname in prop::option::of(any_path()),
        context in prop::option::of(any_path()),
    ) -> MountOptions {
        let mut options = MountOptions::new(lowerdir, None);
        (options.datadir, options.upperdir, options.workdir, options.hidden) = (datadir, upperdir, workdir, hidden);
        options.plugins = plugins;
        options.fsname = fsname.map(Into::into);
        options.security.context = context.map(Into::into);
        options
    }
}

prop_compose! {
    fn any_options()(
        layers in any_layers(),
        switches in any::<[bool; 14]>(),
        states in any::<[Option<bool>; 2]>(),
        redirect_dir in prop::option::of(prop::sample::select(show::REDIRECT_DIR)),
        verity in prop::sample::select(show::VERITY),
        uuid in prop::sample::select(show::UUID),
        xino in prop::sample::select(show::XINO),
        fsync in prop::sample::select(show::FSYNC_VALUES),
        copy_up in prop_oneof![
            Just(CopyUpMode::Auto),
            Just(CopyUpMode::Full),
            (1..u64::MAX).prop_map(CopyUpMode::Range),
        ],
        (catalog, transport, spin, data, xattr_permissions, whiteouts, sidecar) in (
            prop::sample::select(show::CATALOG),
            prop::sample::select(show::TRANSPORT),
            prop::sample::select(show::SPIN),
            prop::sample::select(show::DATA),
            prop::sample::select(show::XATTR_PERMISSIONS),
            prop::sample::select(show::WHITEOUTS),
            prop::sample::select(show::SIDECAR),
        ),
        maps in (any_map(), any_map()),
        squash in any::<[Option<u32>; 2]>(),
        timeout in prop_oneof![Just(0.0), Just(DEFAULT_TIMEOUT), 0.0..1e12_f64],
        max_write in prop_oneof![Just(DEFAULT_MAX_WRITE), 4096..=u32::MAX],
        flags in any_flags(),
    ) -> MountOptions {
        let [ino32, userxattr, static_nlink, noxattrs, noacl, squash_to_root, squash_unmapped, nfs_export,
            writeback, allow_other, allow_root, auto_unmount, remount, debug] = switches;
        MountOptions {
            redirect_dir: redirect_dir.map(|(_, value)| value),
            index: states[0],
            metacopy: states[1],
            verity: verity.1,
            uuid: uuid.1,
            xino: xino.1,
            fsync: fsync.1,
            copy_up,
            catalog: catalog.1,
            transport: transport.1,
            spin: spin.1,
            data: data.1,
            whiteouts: whiteouts.1,
            sidecar: sidecar.1,
            xattr_permissions: xattr_permissions.1,
            uid_map: maps.0.clone(),
            gid_map: maps.1.clone(),
            squash_to_uid: squash[0],
            squash_to_gid: squash[1],
            allow_other: allow_other.then_some(true),
            ino32, userxattr, static_nlink, noxattrs, noacl, squash_to_root, squash_unmapped, nfs_export,
            writeback, allow_root, auto_unmount, remount, debug, timeout, max_write, flags,
            ..layers
        }
    }
}

proptest! {
    #[test]
    fn shown_options_read_back_equal(options in any_options()) {
        let text = options.to_string();
        let (again, warnings) = MountOptions::parse([&text]).unwrap();
        prop_assert_eq!(warnings, [], "{}", text);
        prop_assert_eq!(again, options, "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_fail_otherwise_than_by_an_error(
        text in prop::collection::vec(prop_oneof![prop::sample::select(&b"\\,:\"=lowerdir+"[..]), any::<u8>()], 0..64)
    ) {
        let result = MountOptions::parse([OsString::from_vec(text)]);
        if let Err(error) = result {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
