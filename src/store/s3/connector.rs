//! Gives the AWS SDK an HTTP client.

use std::fmt;
use std::io;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use hyper_util::client::legacy::Error as ClientError;

use crate::endpoint::Endpoint;
use crate::transport::{self, Client, is_timeout};

/// The URL of the endpoint, from which the SDK makes its URLs and the signed `host`.
pub(super) fn url(endpoint: &Endpoint) -> String {
    format!("{}://{}", endpoint.scheme(), endpoint.authority())
}

/// Makes the client for one endpoint, with its pool of connections.
///
/// # Errors
/// For `https`, when the system's root certificates cannot be read.
pub(super) fn http_client(endpoint: &Endpoint, connect: Duration) -> io::Result<SharedHttpClient> {
    let client = transport::client(endpoint, connect)?;
    Ok(SharedHttpClient::new(OneClient(SharedHttpConnector::new(
        Pool(client),
    ))))
}

/// Gives every operation the same pool. The connectors and the SDK keep the timeouts.
#[derive(Debug)]
struct OneClient(SharedHttpConnector);

impl HttpClient for OneClient {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.clone()
    }
}

struct Pool(Client<SdkBody>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl HttpConnector for Pool {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(by_kind)?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn by_kind(error: ClientError) -> ConnectorError {
    let is_connect = error.is_connect();
    if is_connect && is_timeout(&error) {
        ConnectorError::timeout(error.into()).never_connected()
    } else if is_connect {
        ConnectorError::io(error.into()).never_connected()
    } else {
        ConnectorError::io(error.into())
    }
}
