//! When a request is made again: how long to wait, by our own count or by the registry's word.

use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, header};

/// The longest a registry may make us wait; one that wants longer is told to the caller instead.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(90);
/// Who asks for more than this means something else.
const ABSURD: Duration = Duration::from_secs(366 * 24 * 3600);

/// The wait before attempt `failures + 1`: doubling, bounded.
pub(super) fn backoff(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(Duration::from_secs(20))
}

/// How long an answer asks to wait (RFC 9110 §10.2.3): in seconds, or until a date, which is read by the
/// registry's own clock where it says what that shows.
pub(super) fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    said_wait(headers).filter(|wait| *wait <= ABSURD)
}

fn said_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = http_date(text)?;
    let now = clock_of(headers).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// What the server's clock shows.
pub(super) fn clock_of(headers: &HeaderMap) -> Option<SystemTime> {
    http_date(headers.get(header::DATE)?.to_str().ok()?)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form of dates that may still be sent (RFC 9110 §5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, date) = text.trim().split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else {
        return None;
    };
    if month.len() != 3 {
        return None;
    }
    let month = MONTHS.find(month).filter(|at| at % 3 == 0)? / 3 + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(retry: &str, date: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, retry.parse().unwrap());
        if let Some(date) = date {
            headers.insert(header::DATE, date.parse().unwrap());
        }
        headers
    }

    #[test]
    fn waits_double_and_are_bounded() {
        let base = Duration::from_millis(500);
        assert_eq!(backoff(base, 1), Duration::from_millis(500));
        assert_eq!(backoff(base, 3), Duration::from_secs(2));
        assert_eq!(backoff(base, 40), Duration::from_secs(20));
    }

    #[test]
    fn seconds_and_dates() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            asked_to_wait(&headers("7", None)),
            Some(Duration::from_secs(7))
        );
        // By the registry's clock, however wrong ours is.
        let later = headers("Sun, 06 Nov 1994 08:50:07 GMT", Some(date));
        assert_eq!(asked_to_wait(&later), Some(Duration::from_secs(30)));
        assert_eq!(asked_to_wait(&headers(date, None)), Some(Duration::ZERO));
        for odd in [
            "soon",
            "-1",
            "18446744073709551615",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "x, 6 anF 1994 1 GMT",
        ] {
            assert_eq!(asked_to_wait(&headers(odd, None)), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn any_date_can_be_read(text in "[A-Za-z]{0,3}, [0-9]{1,3} [A-Za-z]{3,4} [0-9]{1,5} [0-9:]{1,9} GMT") {
            let _ = http_date(&text);
        }
    }
}
