//! Maps errors of the SDK and answers of the server to [`Error`].

use std::error::Error as StdError;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::endpoint::Endpoint;
use crate::store::Error;

/// An S3 operation that failed, in the words of the server or the SDK.
#[derive(Debug, thiserror::Error)]
#[error("{operation} in bucket {bucket} at {endpoint}: {reason}")]
pub(super) struct Failure {
    pub(super) operation: &'static str,
    pub(super) bucket: String,
    pub(super) endpoint: String,
    reason: String,
}

/// An operation that is tried, for error messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) operation: &'static str,
    pub(super) bucket: &'a str,
    pub(super) endpoint: &'a Endpoint,
}

impl Attempt<'_> {
    pub(super) fn failed(self, reason: String) -> Failure {
        Failure {
            operation: self.operation,
            bucket: self.bucket.to_owned(),
            endpoint: self.endpoint.to_string(),
            reason,
        }
    }

    /// Maps the refusal of one of several objects, which has no status, to an error.
    pub(super) fn refused(self, code: &str, message: Option<&str>) -> Error {
        let failure = self.failed(format!("{code}: {}", message.unwrap_or("no reason given")));
        match code {
            "AccessDenied" => Error::Denied(failure.into()),
            _ => Error::Unavailable(failure.into()),
        }
    }

    /// Maps an error of the SDK to what it means.
    pub(super) fn by_meaning<E>(self, error: SdkError<E, HttpResponse>) -> Error
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match &error {
            SdkError::TimeoutError(_) => Error::TimedOut,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => Error::TimedOut,
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let code = answer.err().code().unwrap_or_default();
                self.answered(status, code, answer.err().message())
            }
            _ => Error::Unavailable(self.failed(chain(&error)).into()),
        }
    }

    /// Maps an answer other than success to what it means.
    pub(super) fn answered(self, status: u16, code: &str, message: Option<&str>) -> Error {
        let reason = match message {
            Some(message) => format!("{status} {code}: {message}"),
            None => format!("{status} {code}"),
        };
        match (status, code) {
            (_, "NoSuchBucket") => {
                let reason = format!("the bucket does not exist ({reason})");
                Error::Unavailable(self.failed(reason).into())
            }
            (_, "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError") => {
                let reason = format!("the configured region is not the server's ({reason})");
                Error::Denied(self.failed(reason).into())
            }
            (401 | 403, _) => {
                let reason = format!(
                    "check the access key, its secret, its permissions and the quotas ({reason})"
                );
                Error::Denied(self.failed(reason).into())
            }
            (408, _) => Error::TimedOut,
            (413 | 507, _) => Error::TooLarge(reason),
            _ => Error::Unavailable(self.failed(reason).into()),
        }
    }
}

/// Whether the server answered with this status.
pub(super) fn has_status<E>(error: &SdkError<E, HttpResponse>, status: u16) -> bool {
    error
        .raw_response()
        .is_some_and(|answer| answer.status().as_u16() == status)
}

/// An error and all its causes.
pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

/// The messages of an error and of all its causes.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let messages: Vec<_> = causes(error).map(ToString::to_string).collect();
    messages.join(": ")
}
