use std::fmt;

use http::{HeaderMap, StatusCode};
use reqwest::Response;
use serde::de::DeserializeOwned;

use crate::sink::PushError;

/// Replies of meters are small: the errors of 100 events have some 10 KB.
const MAX_BODY: usize = 64 * 1024;

/// The reply of a meter to a call of [`HttpMeter`](crate::HttpMeter).
#[must_use]
pub struct HttpReply(Response);

impl HttpReply {
    pub(super) fn new(response: Response) -> Self {
        Self(response)
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// When the meter replied, by its own clock.
    #[cfg(feature = "stripe")]
    pub(crate) fn date(&self) -> Option<std::time::SystemTime> {
        let date = self.0.headers().get(http::header::DATE)?;
        httpdate::parse_http_date(date.to_str().ok()?).ok()
    }

    /// Returns what the status says about the records of the call, as the [table](crate::HttpMeter#replies) lists it.
    ///
    /// # Errors
    ///
    /// Every status but 2xx.
    pub fn result(&self) -> Result<(), PushError> {
        classify(self.0.status(), self.0.headers())
    }

    /// Reads the body. Returns `None` if it is not JSON of this form, or longer than 64 KiB.
    ///
    /// # Errors
    ///
    /// The connection failed: [`not_stored`](PushError::not_stored) after a 4xx other than 408, else
    /// [`retry`](PushError::retry).
    pub async fn json<T: DeserializeOwned>(self) -> Result<Option<T>, PushError> {
        let is_rejected = is_rejection(self.0.status());
        let body = orgkey_http::read_body(self.0, MAX_BODY).await;
        let body = body.map_err(|error| {
            let error = error.without_url();
            if is_rejected {
                PushError::not_stored(error)
            } else {
                PushError::retry(error)
            }
        })?;
        Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
    }
}

/// Whether the meter has stored nothing. A proxy may say 408 about a request that the meter has read.
fn is_rejection(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT
}

/// What a response says about the batch that was sent.
fn classify(status: StatusCode, headers: &HeaderMap) -> Result<(), PushError> {
    if status.is_success() {
        return Ok(());
    }
    let answer = format!("status {}", status.as_u16());
    let error = match status.as_u16() {
        401 | 403 | 404 | 405 | 425 | 429 => PushError::not_stored(answer),
        _ if is_rejection(status) => return Err(PushError::permanent(answer)),
        _ => PushError::retry(answer),
    };
    let asked = orgkey_http::retry_after(headers);
    let error = match (status.as_u16(), asked) {
        // About the caller, whatever it sends.
        (429, _) | (503, Some(_)) => error.of_sink(),
        _ => error,
    };
    Err(match asked {
        Some(wait) => error.after(wait),
        None => error,
    })
}

impl fmt::Debug for HttpReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpReply")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::PushErrorKind;

    fn answer(status: u16, retry_after: Option<&'static str>) -> Result<(), PushErrorKind> {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        classify(status, &headers).map_err(|error| error.kind())
    }

    #[test]
    fn responses_are_classified() {
        for status in [200, 202, 204] {
            assert_eq!(answer(status, None), Ok(()));
        }
        for status in [400, 402, 409, 413, 415, 422] {
            assert_eq!(answer(status, Some("5")), Err(PushErrorKind::Permanent));
        }
        let seconds = |asked: Option<u64>| asked.map(Duration::from_secs);
        for (asked, text) in [(None, None), (Some(30), Some("30"))] {
            for status in [401, 403, 404, 405, 425, 429] {
                let after = seconds(asked);
                let expected = Err(PushErrorKind::NotStored { after });
                assert_eq!(answer(status, text), expected);
            }
            for status in [301, 307, 408, 500, 502, 503] {
                let after = seconds(asked);
                assert_eq!(answer(status, text), Err(PushErrorKind::Retry { after }));
            }
        }
        for absurd in ["-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "1e9"] {
            let expected = Err(PushErrorKind::NotStored { after: None });
            assert_eq!(answer(429, Some(absurd)), expected);
        }
    }
}
