//! The processes of a running container, and what they say to each other.
//!
//! ```text
//!   runner ----- clone3: all namespaces -----> first process (pid 1) ---- fork ----> command
//!     |  \                                        |
//!     |   <------------- channel ---------------->|   Proceed -> ; <- Terminal, Warning, Failed
//!     |                                           |
//!   fork                                       channel
//!     |                                           |
//!     +--- server <--------- FuseDevice ----------+   the union's connection to the kernel
//!     <-- channel -->   Proceed or UserNamespace, Finished -> ; <- Failed
//! ```
//!
//! The server answers for the files of the container. It stands outside the container's pid namespace and cgroups,
//! so that the container can neither kill it nor starve it, in a session of its own; for an ordinary user it enters
//! the container's user namespace, where alone it may give files to other ids.
//!
//! How each end reaches the others, also by SIGKILL:
//! - the runner dies: the kernel kills the first process (parent-death signal), with it every process of the pid
//!   namespace; their mount namespace goes, the union is unmounted, the server reads the end of its connection;
//! - the first process dies: the same, and the runner sees it end;
//! - the server dies: the runner kills the first process.
//!
//! The server ends last, and therefore cleans up.

pub(crate) mod channel;
pub(crate) mod child;
pub(crate) mod init;
pub(crate) mod parent;
pub(crate) mod server;
pub(crate) mod stdio;

use std::path::PathBuf;

use unionfs::MountOptions;

use crate::capabilities::Capabilities;
use crate::idmap::IdMap;
use crate::mounts;
use crate::seccomp::Filter;
use crate::spec::ContainerSpec;

/// Everything that the processes need, decided before the first of them exists.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What was asked for.
    pub(crate) spec: ContainerSpec,
    /// The ids of the container.
    pub(crate) ids: IdMap,
    /// The capabilities of its root.
    pub(crate) capabilities: Capabilities,
    /// The filter of system calls.
    pub(crate) filter: Option<Filter>,
    /// The mounts on its root.
    pub(crate) mounts: mounts::Config,
    /// The union that is its root.
    pub(crate) union: MountOptions,
    /// Where the union is mounted, in the container's mount namespace.
    pub(crate) merged: PathBuf,
    /// What the server deletes in the end.
    pub(crate) remains: Remains,
}

/// What is left of a container when its last process has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remains {
    /// Its directory in the store, when it is not to be kept.
    pub(crate) directory: Option<PathBuf>,
    /// Empty files that were made to mount the generated ones on, where the root had none.
    pub(crate) stubs: Vec<PathBuf>,
    /// Its cgroups.
    pub(crate) cgroups: Vec<PathBuf>,
}
