//! The images: a Debian base with the tools that the tests use, a build of many kinds of changes, and how two are compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::store::Store;

/// The variable that names the base's tar, if it is made already.
pub(crate) const BASE: &str = "E2E_BASE";

/// Every kind of change that a layer can hold.
pub(crate) const CONTAINERFILE: &str = "\
FROM localhost/base
COPY payload /opt/payload
RUN mv /usr/share/doc /srv/doc && mv /srv/doc/base-files /srv/base && mkdir /usr/share/doc && echo d >/usr/share/doc/new
RUN ln /opt/payload/a /opt/payload/hard && ln /etc/hostname.base /srv/hostname && ln -s ../a /opt/payload/dir/link
RUN chown -R 33:33 /var/lib && chown 7:8 /opt/payload/b && chmod 4755 /opt/payload/b && chmod -R o-rwx /etc/security
RUN cp /bin/cat /bin/capable && setcap cap_net_raw+ep /bin/capable && setfattr -n user.note -v hello /opt/payload/a
RUN setfacl -m u:7:rw /opt/payload/dir/c && setfacl -d -m g:8:rx /opt/payload/dir
RUN rm -rf /opt/payload/dir /etc/motd /usr/share/locale && mkdir /opt/payload/dir && echo again >/opt/payload/dir/c
COPY payload/a /opt/payload/dir/a
RUN mkfifo /opt/payload/fifo && touch -h -d @1000000000 /opt/payload/a && truncate -s 5M /opt/payload/sparse
RUN mv /srv/base /srv/base2 && mv /srv/doc /usr/share/doc/old && rm -rf /usr/share/doc/old/acl && echo x >>/srv/hostname
RUN rm /opt/payload/hard && mv /opt/payload /opt/moved && rm -rf /opt/moved/empty && mkdir /opt/payload
";

/// Returns the base image's tar, made once with mmdebstrap.
pub(crate) fn base() -> PathBuf {
    if let Some(tar) = std::env::var_os(BASE) {
        return tar.into();
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/engines");
    std::fs::create_dir_all(&directory).unwrap();
    let lock = std::fs::File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    // The user of a re-executed test reads it from a directory that everybody may enter.
    let tar = std::env::temp_dir().join("e2e-engines-base.tar");
    if !tar.exists() {
        let making = directory.join("making.tar");
        let status = Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "--include=acl,attr,libcap2-bin", "--skip=output/dev"])
            .args(["--customize-hook=echo base >$1/etc/hostname.base", "bookworm"])
            .arg(&making)
            .status()
            .unwrap();
        assert!(status.success(), "mmdebstrap: {status}");
        std::fs::copy(&making, &tar).unwrap();
    }
    tar
}

/// Lays the files that are copied into the image, and the Containerfile, into a directory.
pub(crate) fn payload(context: &Path) {
    let payload = context.join("payload");
    for directory in ["dir", "empty"] {
        std::fs::create_dir_all(payload.join(directory)).unwrap();
    }
    for (name, size) in [("a", 10), ("b", 100_000), ("dir/c", 3_000_000), ("dir/.hidden", 1)] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        std::fs::write(payload.join(name), bytes).unwrap();
    }
    std::fs::write(context.join("Containerfile"), CONTAINERFILE).unwrap();
}

/// Prints what is in an image, in four parts: objects, sums of the contents, capabilities, attributes. Few programs, because
/// one for each file would take minutes.
const LISTING: &str = "cd /; list() { find . -xdev \\( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run \\) -prune -o \"$@\"; }; \
    list -type d -printf '%P|%y %m %U:%G\\n' -o -printf '%P|%y %m %U:%G %n %l\\n'; echo; \
    list -type f -exec md5sum {} + | sed 's/\\(.*\\)  .\\/\\(.*\\)/\\2| \\1/'; \
    list -type f -exec getcap {} + | sed 's/^.\\/\\(.*\\) \\(.*\\)/\\1| \\2/'; \
    list -exec getfattr -h -d -m user. {} + | awk '/^# file: /{name=substr($0,9)} /^user/{print name \"| \" $0}'";

/// Returns every object of an image: its place, and a line that says everything about it but its times of this run.
pub(crate) fn tree(store: &Store, image: &str) -> BTreeMap<String, String> {
    let text = store.run(&["--rm", "--read-only"], image, LISTING);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (name, said) in text.lines().filter_map(|line| line.split_once('|')) {
        found.entry(name.to_owned()).or_default().push_str(said);
    }
    found.retain(|name, _| !GENERATED.contains(&name.as_str()));
    found
}

/// What the engine makes for each container, and the root, whose mode is the driver's choice.
const GENERATED: [&str; 6] = ["", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "proc"];

/// Fails with the objects that differ.
pub(crate) fn assert_equal(want: &BTreeMap<String, String>, got: &BTreeMap<String, String>) {
    assert!(want.len() > 1000, "only {} objects", want.len());
    let names: std::collections::BTreeSet<&String> = want.keys().chain(got.keys()).collect();
    let differ: Vec<String> = names
        .into_iter()
        .filter(|name| want.get(*name) != got.get(*name))
        .map(|name| format!("{name}: plain {:?}, union {:?}", want.get(name), got.get(name)))
        .collect();
    assert!(differ.is_empty(), "{} objects differ: {:#?}", differ.len(), &differ[..differ.len().min(20)]);
}
