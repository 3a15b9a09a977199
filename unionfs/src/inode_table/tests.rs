//! Nodes of files change between whole and leaf, and nobody can tell.

use super::*;
use crate::request::Timestamp;
use crate::stack::lower::LowerDir;
use crate::sys::Stat;

const DEVICE: u64 = 0;
const UPPER: usize = 41;
const LOWER: usize = 42;

fn stat(ino: u64) -> Stat {
    let never = Timestamp { sec: 0, nsec: 0 };
    Stat {
        mode: libc::S_IFDIR | 0o755,
        inode_mode: libc::S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: never,
        mtime: never,
        ctime: never,
        btime: None,
        dev: 1,
        ino,
        mount_root: false,
    }
}

struct Fixture {
    table: InodeTable,
    root: Arc<Inode>,
    dir: Arc<LowerDir>,
}

fn fixture() -> Fixture {
    let dir = LowerDir::new(LOWER, None, b"", &stat(2), false);
    let state = State { lower: Lower::Dirs([Arc::clone(&dir)].into()), ..State::default() };
    let root = Arc::new(Inode::new(NodeId::ROOT, 2, FileKind::Directory, state));
    let table = InodeTable::new(&root, ObjectKey::new(LOWER, DEVICE, 2));
    Fixture { table, root, dir }
}

impl Fixture {
    fn lower_file(&self, name: &str, ino: u64) -> Candidate {
        let name = FileName::new(name.as_bytes()).unwrap();
        Candidate {
            key: ObjectKey::new(LOWER, DEVICE, ino),
            ino,
            kind: FileKind::Regular,
            upper: None,
            lower: Lower::File(Arc::clone(&self.dir), name.clone(), ino),
            lower_data: None,
            index: None,
            parent: Arc::clone(&self.root),
            name,
        }
    }

    fn upper_file(&self, name: &str, ino: u64) -> Candidate {
        let key = ObjectKey::new(UPPER, DEVICE, ino);
        Candidate { key, upper: Some(ino), lower: Lower::None, ..self.lower_file(name, ino) }
    }

    fn insert(&self, candidate: Candidate) -> Node {
        self.table.insert(candidate, self.root.version.load(Ordering::Relaxed)).unwrap()
    }

    fn leaves(&self) -> usize {
        self.table.maps.read().leaves.len()
    }
}

fn place(inode: &Inode) -> Vec<u8> {
    inode.place().unwrap().name.as_bytes().to_vec()
}

#[test]
fn a_leaf_grows_into_what_a_whole_node_would_have_been() {
    let long = "n".repeat(255);
    for (name, ino) in [("a", 10), ("exactly-thirty-characters-long", 11), (long.as_str(), 12)] {
        let f = fixture();
        assert!(
            matches!(f.insert(f.lower_file(name, ino)), Node::Leaf(id, FileKind::Regular) if id.0 == ino)
        );
        assert!(matches!(f.insert(f.upper_file("upper", 20)), Node::Leaf(NodeId(20), _)));
        assert_eq!((f.leaves(), f.table.count()), (2, 3));
        let lower = f.table.get(NodeId(ino)).unwrap();
        assert_eq!(place(&lower), name.as_bytes());
        assert!(
            matches!(&lower.state.read().lower, Lower::File(_, own, _) if own.as_bytes() == name.as_bytes())
        );
        assert_eq!((lower.ino(), lower.on_upper()), (ino, false));
        let upper = f.table.get(NodeId(20)).unwrap();
        assert_eq!((place(&upper), upper.state.read().upper), (b"upper".to_vec(), Some(20)));
        assert_eq!((f.leaves(), f.table.count()), (0, 3));
        assert_eq!(f.table.shown_ino(ObjectKey::new(LOWER, DEVICE, ino)), Some(ino));
        assert_eq!(f.table.shown_ino(ObjectKey::new(UPPER, DEVICE, ino)), None, "another layer's object");
    }
}

#[test]
fn lookups_are_counted_through_every_change_of_form() {
    let f = fixture();
    for _ in 0..3 {
        f.insert(f.lower_file("a", 10));
    }
    drop(f.table.get(NodeId(10)).unwrap());
    f.insert(f.lower_file("a", 10));
    assert!(f.table.forget(NodeId(10), 3).is_empty());
    assert_eq!(f.table.forget(NodeId(10), 1).len(), 1);
    assert!(f.table.get(NodeId(10)).is_err_and(|error| error.is(Errno::STALE)));
    f.insert(f.lower_file("a", 10));
    f.insert(f.lower_file("a", 10));
    assert!(f.table.forget(NodeId(10), 2).is_empty(), "a leaf goes without a node to drop");
    assert_eq!(f.table.count(), 1);
    assert_eq!(f.root.refs.load(Ordering::Relaxed), 1, "children gave the root back");
}

#[test]
fn nodes_that_nobody_uses_become_leaves_again_and_those_in_use_do_not() {
    let f = fixture();
    let count = WHOLE_LEAVES as u64 * 2;
    for number in 0..count {
        f.insert(f.lower_file(&format!("f{number}"), 100 + number));
    }
    let held = f.table.get(NodeId(100)).unwrap();
    let linked = f.table.get(NodeId(101)).unwrap();
    f.table.link(&linked, &f.root, FileName::new(b"second").unwrap());
    drop(linked);
    let moved = f.table.get(NodeId(102)).unwrap();
    moved.state.write().upper = Some(7);
    f.table.rekey(&moved, ObjectKey::new(UPPER, DEVICE, 7), None);
    drop(moved);
    for number in 3..count {
        drop(f.table.get(NodeId(100 + number)).unwrap());
    }
    assert!(f.leaves() > 0 && f.table.maps.read().whole.len() <= WHOLE_LEAVES + 4);
    assert_eq!(f.table.count() as u64, count + 1);
    assert!(Arc::ptr_eq(&held, &f.table.get(NodeId(100)).unwrap()), "one node for one object");
    let linked = f.table.get(NodeId(101)).unwrap();
    assert_eq!(linked.state.read().other_places.as_ref().unwrap().len(), 1);
    assert_eq!(f.table.get(NodeId(102)).unwrap().state.read().upper, Some(7));
    assert_eq!(f.table.shown_ino(ObjectKey::new(UPPER, DEVICE, 7)), Some(102));
    assert_eq!(place(&f.table.get(NodeId(103)).unwrap()), b"f3");
}

#[test]
fn one_number_on_two_layers_is_two_nodes() {
    let f = fixture();
    f.insert(f.upper_file("a", 10));
    let lower = f.insert(f.lower_file("b", 10));
    assert!(lower.id().0 >= SERIAL_BASE);
    assert_eq!(place(&f.table.get(NodeId(10)).unwrap()), b"a");
    assert_eq!(place(&f.table.get(lower.id()).unwrap()), b"b");
    assert_eq!(f.table.shown_ino(ObjectKey::new(LOWER, DEVICE, 10)), Some(10));
    // The number of a removed file comes back as another one's before the removal is known.
    f.insert(f.upper_file("a", 10));
    let old = f.table.get(NodeId(10)).unwrap();
    f.table.unkey(&old);
    let new = f.insert(f.upper_file("new", 10));
    assert_ne!(new.id(), old.id);
}

#[test]
fn a_second_name_of_a_leaf_is_a_name_of_the_same_node() {
    let f = fixture();
    f.insert(f.upper_file("a", 10));
    let Node::Whole(inode) = f.insert(f.upper_file("b", 10)) else { panic!("two names need a whole node") };
    assert_eq!(inode.id, NodeId(10));
    assert!(!f.table.unlink(&inode, &f.root, b"a"));
    assert_eq!(place(&inode), b"b");
    assert!(f.table.unlink(&inode, &f.root, b"b"));
}
