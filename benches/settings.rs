//! How criterion measures in every group: short, because every iteration that consumes a mount costs more outside the
//! clock than inside it.

use std::time::Duration;

use criterion::Criterion;

/// 20 samples in about a second; the command line may change that.
pub fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1000))
        .without_plots()
        .configure_from_args()
}
