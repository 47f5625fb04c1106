//! Numbers of the fields of messages that we write ourselves, by message.

/// `envoy.service.ext_proc.v3.ProcessingResponse`
pub(super) const IMMEDIATE_RESPONSE: u32 = 7;
pub(super) const DYNAMIC_METADATA: u32 = 8;

/// `envoy.service.ext_proc.v3.ImmediateResponse`
pub(super) mod immediate_response {
    pub(in super::super) const STATUS: u32 = 1;
    pub(in super::super) const HEADERS: u32 = 2;
    pub(in super::super) const DETAILS: u32 = 5;
}

/// `envoy.type.v3.HttpStatus`
pub(super) const CODE: u32 = 1;

/// `envoy.service.ext_proc.v3.HeaderMutation`
pub(super) const SET_HEADERS: u32 = 1;

/// `envoy.config.core.v3.HeaderValueOption`
pub(super) const HEADER: u32 = 1;
pub(super) const APPEND_ACTION: u32 = 3;

/// `envoy.config.core.v3.HeaderValue` and the entries of a map
pub(super) const KEY: u32 = 1;
pub(super) const RAW_VALUE: u32 = 3;
pub(super) const VALUE: u32 = 2;

/// `google.protobuf.Struct`
pub(super) const FIELDS: u32 = 1;

/// `google.protobuf.Value`
pub(super) const STRING_VALUE: u32 = 3;
pub(super) const STRUCT_VALUE: u32 = 5;
