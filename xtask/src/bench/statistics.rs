//! Percentiles of measured values.

use serde::Serialize;

/// A set of values, boiled down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Least.
    pub min: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// Greatest.
    pub max: f64,
}

/// Boils values down (nearest rank, so every percentile is a value that was seen).
pub fn summary(values: impl IntoIterator<Item = f64>) -> Summary {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let rank = |percent: usize| {
        let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
        values.get(at).copied().unwrap_or(0.0)
    };
    Summary {
        count: values.len(),
        min: values.first().copied().unwrap_or(0.0),
        p50: rank(50),
        p90: rank(90),
        p99: rank(99),
        max: values.last().copied().unwrap_or(0.0),
    }
}

impl Summary {
    /// Cells of a table.
    pub fn cells(&self) -> Vec<String> {
        let number = |value: f64| format!("{value:.2}");
        vec![
            self.count.to_string(),
            number(self.min),
            number(self.p50),
            number(self.p90),
            number(self.p99),
            number(self.max),
        ]
    }
}

/// Headings of [`Summary::cells`].
pub const HEADINGS: [&str; 6] = ["n", "min", "p50", "p90", "p99", "max"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let s = summary((1..=200).rev().map(f64::from));
        assert_eq!((s.count, s.min, s.p50, s.p90, s.p99, s.max), (200, 1.0, 100.0, 180.0, 198.0, 200.0));
        assert_eq!(summary([3.0]).p99, 3.0);
        assert_eq!(summary([]), Summary::default());
    }
}
