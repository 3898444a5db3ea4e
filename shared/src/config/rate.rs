//! A route's `limit`: how many requests a client address may make in what time.

use std::time::Duration;

use super::bounds::BURST;
use super::problem::Refusal;
use super::resolved::Rate;
use super::table::Table;

/// Units of time, in nanoseconds, with their names.
const UNITS: [(&str, &str, u64); 4] = [
    ("s", "a second", 1_000_000_000),
    ("m", "a minute", 60_000_000_000),
    ("h", "an hour", 3_600_000_000_000),
    ("d", "a day", 86_400_000_000_000),
];

/// Nanoseconds between two requests: a clock read for each could not tell shorter ones apart.
const INTERVAL_LEAST: u64 = 1_000;

pub(super) fn limit(mut table: Table<'_>) -> Option<Rate> {
    let interval =
        table.required("rate").and_then(|entry| entry.check(interval(entry.text("a rate such as \"30/m\"")?)));
    let burst = table.number("burst", 1, &BURST);
    table.finish();
    Some(Rate { interval: interval?, burst })
}

/// The time between two requests at the rate as written.
fn interval(written: &str) -> Result<Duration, Refusal> {
    let Some((digits, unit)) = written.split_once('/').filter(|(digits, _)| is_number(digits)) else {
        return Err(no_rate(written));
    };
    let Some((unit, named, nanoseconds)) = UNITS.into_iter().find(|(known, ..)| *known == unit) else {
        return Err(unknown_unit(digits, unit));
    };
    if digits.bytes().all(|digit| digit == b'0') {
        let hint = "use 1 or more; to refuse everybody, give the route respond = { status = 403 }";
        return Err(Refusal::new(format!("{written:?} lets nobody in"), hint));
    }
    let interval = digits.parse().ok().and_then(|requests: u64| nanoseconds.checked_div(requests));
    match interval.filter(|interval| *interval >= INTERVAL_LEAST) {
        Some(interval) => Ok(Duration::from_nanos(interval)),
        None => {
            let most = nanoseconds / INTERVAL_LEAST;
            let text = format!("{written:?} is more than {most} requests {named}");
            Err(Refusal::new(text, format!("use \"{most}/{unit}\" or less, or remove the limit")))
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn no_rate(written: &str) -> Refusal {
    let digits = if is_number(written) { written } else { "30" };
    Refusal::new(
        format!("{written:?} is not a rate"),
        format!("write a whole number of requests and the time they have, s, m, h or d, as in \"{digits}/m\""),
    )
}

fn unknown_unit(digits: &str, unit: &str) -> Refusal {
    let first = unit.trim().get(..1).unwrap_or_default().to_ascii_lowercase();
    let hint = match UNITS.iter().find(|(known, ..)| *known == first) {
        Some((meant, ..)) => format!("write \"{digits}/{meant}\""),
        None => "units are s, m, h, d: a second, a minute, an hour, a day".to_owned(),
    };
    Refusal::new(format!("unknown unit {unit:?}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_time_between_two_requests() {
        let cases = [
            ("30/m", Duration::from_secs(2)),
            ("1/s", Duration::from_secs(1)),
            ("3/s", Duration::from_nanos(333_333_333)),
            ("1000000/s", Duration::from_micros(1)),
            ("60000000/m", Duration::from_micros(1)),
            ("7200/h", Duration::from_millis(500)),
            ("1/d", Duration::from_hours(24)),
        ];
        for (written, expected) in cases {
            assert_eq!(interval(written), Ok(expected), "{written}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused_with_what_to_write() {
        let cases = [
            ("", "\"\" is not a rate", "as in \"30/m\""),
            ("30", "\"30\" is not a rate", "as in \"30/m\""),
            ("7", "\"7\" is not a rate", "as in \"7/m\""),
            ("/s", "not a rate", "a whole number"),
            ("-1/s", "not a rate", "a whole number"),
            ("1.5/s", "not a rate", "a whole number"),
            ("1 /s", "not a rate", "a whole number"),
            ("30/min", "unknown unit \"min\"", "write \"30/m\""),
            ("30/ S", "unknown unit \" S\"", "write \"30/s\""),
            ("30/", "unknown unit \"\"", "units are s, m, h, d"),
            ("30/é", "unknown unit \"é\"", "units are s, m, h, d"),
            ("30/week", "unknown unit \"week\"", "units are s, m, h, d"),
            ("00/h", "lets nobody in", "use 1 or more"),
            ("1000001/s", "is more than 1000000 requests a second", "use \"1000000/s\" or less"),
            ("99999999999999999999/d", "is more than 86400000000 requests a day", "remove the limit"),
        ];
        for (written, what, hint) in cases {
            let refusal = interval(written).unwrap_err();
            assert!(refusal.text.contains(what), "{written}: {refusal:?}");
            assert!(refusal.hint.contains(hint), "{written}: {refusal:?}");
        }
    }

    #[test]
    fn the_longest_debt_fits_a_signed_count_of_nanoseconds() {
        let longest = interval("1/d").unwrap().as_nanos() * u128::from(BURST.check::<u32>(100_000).unwrap());
        assert!(longest <= i64::MAX as u128);
        assert!(BURST.check::<u32>(100_001).is_err());
    }
}
