//! Values in Go's spelling, which users of istio-iptables know.

use std::time::Duration;

use crate::value::ValueError;

/// What `strconv.ParseBool` of Go takes; `yes`, `on` and an empty text are errors.
pub fn parse_bool(text: &str) -> Result<bool, ValueError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ValueError::new(
            "a switch is true or false (or 1, t, T, TRUE, True, 0, f, F, FALSE, False)",
        )),
    }
}

/// What `time.ParseDuration` takes, without sign: numbers with units, such as `1m30s` or `1.5h`.
/// At most 24 hours, which no deadline here needs.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    let bad = || {
        ValueError::new(
            "a duration is one or more numbers with a unit (ns, us, ms, s, m, h), such as 30s or 1m30s, at most 24h",
        )
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest[..digits].parse().map_err(|_e| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .char_indices()
            .find(|(_, c)| c.is_ascii_digit() || *c == '.')
            .map_or(rest.len(), |(i, _)| i);
        let seconds = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        total += number * seconds;
        rest = &rest[letters..];
    }
    if text.is_empty() || total > 86_400.0 {
        return Err(bad());
    }
    Duration::try_from_secs_f64(total).map_err(|_e| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_gos_and_nothing_else() {
        assert_eq!(parse_bool("T"), Ok(true));
        assert_eq!(parse_bool("False"), Ok(false));
        for bad in ["", "yes", "on", "tRUE", " true"] {
            assert!(parse_bool(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "abc", "5x", "-5s", "s", "1..5s", "25h", "5s ", "5\u{e9}"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
