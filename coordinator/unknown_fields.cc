#include "coordinator/unknown_fields.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/unknown_field_set.h"
#include "kernels/base/status_macros.h"

namespace ring {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

absl::Status CheckEnum(const FieldDescriptor* field, int number) {
  if (field->enum_type()->FindValueByNumber(number) != nullptr) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field->full_name(), " = ", number, " is not a value of ",
                   field->enum_type()->full_name()));
}

absl::Status CheckField(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  const int count =
      field->is_repeated() ? reflection->FieldSize(message, field) : 1;
  for (int i = 0; i < count; ++i) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      RING_RETURN_IF_ERROR(CheckEnum(
          field, field->is_repeated()
                     ? reflection->GetRepeatedEnumValue(message, field, i)
                     : reflection->GetEnumValue(message, field)));
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      RING_RETURN_IF_ERROR(CheckAllFieldsKnown(
          field->is_repeated()
              ? reflection->GetRepeatedMessage(message, field, i)
              : reflection->GetMessage(message, field)));
    } else {
      break;  // scalars have nothing inside
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAllFieldsKnown(const Message& message) {
  const Reflection* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  if (!unknown.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        message.GetTypeName(), " has no field number ",
        unknown.field(0).number(), "; this server does not support it"));
  }
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    RING_RETURN_IF_ERROR(CheckField(message, field));
  }
  return absl::OkStatus();
}

}  // namespace ring
