//! What comes after a backend's turn.

/// What the domain does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn<E> {
    /// The next turn.
    Again,
    /// Nothing to do: block until an event, or until this time ([`Runtime::now_us`](crate::Runtime::now_us)).
    Wait {
        /// Microseconds; `None` = only an event.
        until_us: Option<u64>,
    },
    /// The device cannot be revived, for this reason: end the domain, to be restarted.
    Dead(E),
}

impl<E> Turn<E> {
    /// The same with the reason told in another way.
    pub fn map_dead<F>(self, tell: impl FnOnce(E) -> F) -> Turn<F> {
        match self {
            Self::Again => Turn::Again,
            Self::Wait { until_us } => Turn::Wait { until_us },
            Self::Dead(why) => Turn::Dead(tell(why)),
        }
    }
}
