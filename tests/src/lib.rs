//! Fixtures of the test tiers: layers, snapshots, mounts, oracles, random histories.
//!
//! Settings, all by environment variable:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `E2E_STRICT=1` | a test that would be skipped fails (set in CI) |
//! | `E2E_UNION=PROGRAM` | the union program to test, instead of this workspace's |
//! | `E2E_MOUNT_PROGRAM=PROGRAM` | the same, for showing a test on another program (fuse-overlayfs) |
//! | `E2E_OPTIONS=,OPTION` | more mount options, a comma first, for every mount of the union |
//! | `E2E_CATALOGS=1` | catalogs are made of all lower layers before every mount, and required |
//! | `E2E_DIR=DIR` | where scratch directories are made, instead of the temporary directory; sockets and podman want a short path |
//! | `E2E_UPPER_DIR=DIR` | where uppers and workdirs are made, instead of beside the lowers |
//! | `E2E_PLAIN_DIR=DIR` | where the plain directories of histories are made, instead of in a scratch directory |
//! | `E2E_OPS=N` | number of random operations of a parity run |
//! | `E2E_SEED=N` | seed of a parity run |
//! | `E2E_WITHOUT=CALL,CALL` | calls that a parity run leaves out, to look past a known difference |
//! | `E2E_ROTATIONS=N` | rotations of the live tier under load |
//! | `E2E_KILLS=N` | how often the crash tier kills the server |
//! | `E2E_CUTS=N` | how often the crash tier cuts the power of a disk (root; needs mkfs.ext4, mkfs.xfs, losetup) |
//! | `E2E_HISTORIES=N` | number of histories of the interop tier |
//! | `E2E_PEERS=PROGRAM:PROGRAM` | the fuse-overlayfs programs of the interop tier, instead of those in PATH |
//! | `E2E_FILES=N` | number of files of the limits tier |
//! | `E2E_FSX_OPS=N` | number of operations of fsx |
//! | `E2E_STRESS_SECONDS=N` | seconds for each stressor of the conformance table |
//! | `E2E_ONLY=TEXT` | only the rows of the conformance table whose file system's name contains this |
//! | `E2E_HANG_SECONDS=N` | after how long a server that serves a mount is killed |
//! | `E2E_TOOLS=DIR` | where pjdfstest and fsx are, instead of target/tools/bin |
//! | `E2E_AS=user\|userns\|single` | set by the harness for its own re-execution as an ordinary user |

pub mod disk;
pub mod execute;
pub mod flatten;
pub mod history;
pub mod idmapped;
pub mod mounted;
pub mod nfs;
pub mod operation;
pub mod oracle;
pub mod program;
pub mod random;
mod rehearsal;
pub mod require;
pub mod shrink;
pub mod sides;
pub mod snapshot;
pub mod stick;
pub mod suites;
pub mod sys;
pub mod tree;
pub mod user;
