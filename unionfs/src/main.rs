//! unionfs
fn main() {}
