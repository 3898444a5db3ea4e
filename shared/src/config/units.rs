//! Durations and sizes as written: a whole number with its unit, as in `"30s"` and `"512MiB"`.

use std::time::Duration;

use super::problem::Refusal;

/// What a kind of quantity is called, an example, and its units by factor.
struct Quantity {
    name: &'static str,
    example: &'static str,
    units: &'static [(&'static str, u64)],
}

/// In milliseconds.
const DURATION: Quantity =
    Quantity { name: "duration", example: "30s", units: &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] };

/// In bytes.
const SIZE: Quantity = Quantity {
    name: "size",
    example: "8KiB",
    units: &[
        ("B", 1),
        ("KB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
};

/// Reads a duration such as `"500ms"`, `"30s"`, `"2m"` or `"1h"`, to the millisecond.
pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
    DURATION.read(text).map(Duration::from_millis)
}

/// Reads a size such as `"16KB"`, `"8KiB"` or `"1GiB"`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, Refusal> {
    SIZE.read(text)
}

/// Milliseconds as an operator would write them: `24h`.
pub(super) fn show_duration(milliseconds: u64) -> String {
    DURATION.show(milliseconds)
}

/// Bytes as an operator would write them: `14KiB`.
pub(super) fn show_size(bytes: u64) -> String {
    SIZE.show(bytes)
}

impl Quantity {
    fn read(&self, text: &str) -> Result<u64, Refusal> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() || unit.starts_with('.') {
            return Err(self.refusal(format!("{text:?} is not a whole number with a unit")));
        }
        let factor = self.factor(digits, unit)?;
        let number: Option<u64> = digits.parse().ok();
        number
            .and_then(|number| number.checked_mul(factor))
            .ok_or_else(|| self.refusal(format!("{text:?} is too large")))
    }

    fn factor(&self, digits: &str, unit: &str) -> Result<u64, Refusal> {
        let known = self.units.iter().find(|(name, _)| *name == unit);
        known.map(|(_, factor)| *factor).ok_or_else(|| self.unknown_unit(digits, unit))
    }

    fn unknown_unit(&self, digits: &str, unit: &str) -> Refusal {
        let meant = self.units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        match meant {
            Some((meant, _)) => Refusal::new(format!("unknown unit {unit:?}"), format!("write \"{digits}{meant}\"")),
            None if unit.is_empty() => self.refusal(format!("\"{digits}\" has no unit")),
            None => self.refusal(format!("unknown unit {unit:?}")),
        }
    }

    fn refusal(&self, text: String) -> Refusal {
        let units: Vec<&str> = self.units.iter().map(|(name, _)| *name).collect();
        let Self { name, example, .. } = self;
        Refusal::new(text, format!("write a {name} like \"{example}\"; units are {}", units.join(", ")))
    }

    fn show(&self, number: u64) -> String {
        let whole = |(_, factor): &&(&str, u64)| number > 0 && number.is_multiple_of(*factor);
        match self.units.iter().filter(whole).max_by_key(|(_, factor)| *factor) {
            Some((unit, factor)) => format!("{}{unit}", number / factor),
            None => number.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_carry_units() {
        let durations = [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)];
        for (text, expected) in durations {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        let sizes = [("100B", 100), ("16KB", 16_000), ("8KiB", 8192), ("512MiB", 512 << 20), ("1GiB", 1 << 30)];
        for (text, expected) in sizes {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_a_way_to_write_it() {
        let cases = [
            ("", "not a whole number", "like \"30s\""),
            ("soon", "not a whole number", "units are ms, s, m, h"),
            ("-1s", "not a whole number", "like \"30s\""),
            ("1.5s", "not a whole number", "like \"30s\""),
            ("30", "\"30\" has no unit", "like \"30s\""),
            ("30sec", "unknown unit \"sec\"", "units are ms, s, m, h"),
            ("1h30m", "unknown unit \"h30m\"", "units are ms, s, m, h"),
            ("30 S", "unknown unit \" S\"", "write \"30s\""),
            ("99999999999999999999s", "too large", "like \"30s\""),
            ("9999999999999999h", "too large", "like \"30s\""),
        ];
        for (text, what, hint) in cases {
            let refusal = duration(text).unwrap_err();
            assert!(refusal.text.contains(what), "{text}: {refusal:?}");
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
        assert_eq!(size("8kib").unwrap_err().hint, "write \"8KiB\"");
    }

    #[test]
    fn quantities_show_in_their_largest_whole_unit() {
        assert_eq!(show_duration(86_400_000), "24h");
        assert_eq!(show_duration(1), "1ms");
        assert_eq!(show_size(14 << 10), "14KiB");
        assert_eq!(show_size(0), "0");
    }
}
