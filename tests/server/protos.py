"""The public proto files again, written from the descriptors that tritonclient carries: no package has the files."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from tritonclient.grpc import model_config_pb2, service_pb2


def write_protos(folder: Path) -> None:
    """`grpc_service.proto` and `model_config.proto`, as in triton-inference-server/common."""
    for module in (model_config_pb2, service_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        (folder / file.name).write_text(_file(file))


def _file(file: FileDescriptorProto) -> str:
    head = [
        f'syntax = "{file.syntax}";',
        f"package {file.package};",
        *(f'import "{name}";' for name in file.dependency),
    ]
    body = [*map(_enum, file.enum_type), *map(_message, file.message_type)]
    for service in file.service:
        calls = [
            f"rpc {call.name}({'stream ' * call.client_streaming}{call.input_type}) "
            f"returns ({'stream ' * call.server_streaming}{call.output_type}) {{}}"
            for call in service.method
        ]
        body.append(_block(f"service {service.name}", calls))
    return "\n".join([*head, *body]) + "\n"


def _message(message: DescriptorProto) -> str:
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    parts = [*map(_enum, message.enum_type)]
    parts += [_message(nested) for nested in message.nested_type if nested.name not in maps]
    parts += [_field(field, maps) for field in message.field if not field.HasField("oneof_index")]
    for i, choice in enumerate(message.oneof_decl):
        members = [field for field in message.field if field.HasField("oneof_index") and field.oneof_index == i]
        parts.append(_block(f"oneof {choice.name}", [_field(field, maps) for field in members]))
    return _block(f"message {message.name}", parts)


def _field(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        kind = f"map<{_type(entry.field[0])}, {_type(entry.field[1])}>"
    else:
        kind = "repeated " * (field.label == FieldDescriptorProto.LABEL_REPEATED) + _type(field)
    return f"{kind} {field.name} = {field.number};"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _enum(enum: EnumDescriptorProto) -> str:
    return _block(f"enum {enum.name}", [f"{value.name} = {value.number};" for value in enum.value])


def _block(head: str, lines: list[str]) -> str:
    return "\n".join([f"{head} {{", *lines, "}"])
