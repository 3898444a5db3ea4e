//! The figures of a worker, a slot or the service, and how they add up.

use serde::{Deserialize, Serialize};

macro_rules! snapshot {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters at one instant. All but `connections` only ever grow. What another version does not count is 0.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Snapshot {
            /// Adds another's figures to this one's.
            pub fn add(&mut self, other: &Snapshot) {
                $(self.$name = self.$name.wrapping_add(other.$name);)*
            }
        }
    };
}

snapshot! {
    /// Requests answered to their last byte.
    requests,
    /// Connections accepted.
    accepted,
    /// Bytes read from clients.
    bytes_in,
    /// Bytes written to clients.
    bytes_out,
    /// Responses with a status from 200 to 299.
    status_2xx,
    /// Responses with a status from 300 to 399.
    status_3xx,
    /// Responses with a status from 400 to 499.
    status_4xx,
    /// Responses with a status from 500 to 599.
    status_5xx,
    /// Connections that outlived their worker's death.
    rescued,
    /// Requests run again after a death.
    replayed,
    /// Responses continued at the exact byte after a death.
    continued,
    /// Requests answered 500 or 504 because their worker died of them or they cannot be run again.
    failed,
    /// Connections that a rescue had to close.
    closed,
    /// Connections open now.
    connections,
    /// Nanoseconds that loops and threads have worked.
    busy_ns,
}
