#include "coordinator/text/jinja/expression_parser.h"

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/is_tests.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/methods.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

std::optional<Comparison> ComparisonOf(const Token& token) {
  if (token.Is("==")) return Comparison::kEq;
  if (token.Is("!=")) return Comparison::kNe;
  if (token.Is("<")) return Comparison::kLt;
  if (token.Is("<=")) return Comparison::kLe;
  if (token.Is(">")) return Comparison::kGt;
  if (token.Is(">=")) return Comparison::kGe;
  if (token.Is("in")) return Comparison::kIn;
  return std::nullopt;
}

std::optional<BinaryOperator> ProductOf(const Token& token) {
  if (token.Is("*")) return BinaryOperator::kMul;
  if (token.Is("/")) return BinaryOperator::kDiv;
  if (token.Is("//")) return BinaryOperator::kFloorDiv;
  if (token.Is("%")) return BinaryOperator::kMod;
  return std::nullopt;
}

std::string Describe(const Token& token) {
  switch (token.kind) {
    case Token::Kind::kEnd:
      return "the end of the template";
    case Token::Kind::kTagEnd:
      return "'%}'";
    case Token::Kind::kPrintEnd:
      return "'}}'";
    default:
      return absl::StrCat("'", token.text, "'");
  }
}

// True where a test takes this token as its argument: "is eq 3".
bool StartsTestArgument(const Token& token) {
  switch (token.kind) {
    case Token::Kind::kName:
      return token.text != "else" && token.text != "or" && token.text != "and";
    case Token::Kind::kString:
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      return true;
    default:
      return token.Is("[") || token.Is("{");
  }
}

// The name that map, select and such apply, if it is written out.
absl::Status CheckAppliedName(const Expression& filter) {
  const bool map = filter.name == "map";
  const bool by_attribute =
      filter.name == "selectattr" || filter.name == "rejectattr";
  const bool by_test = filter.name == "select" || filter.name == "reject";
  if (!map && !by_attribute && !by_test) return absl::OkStatus();
  const size_t at = by_attribute ? 2 : 1;
  if (filter.operands.size() <= at ||
      filter.operands[at]->kind != Expression::Kind::kConstant ||
      !filter.operands[at]->value.is(Value::Kind::kString)) {
    return absl::OkStatus();
  }
  const std::string& name = filter.operands[at]->value.string();
  if (map ? IsFilter(name) : IsTest(name)) return absl::OkStatus();
  return ErrorAtLine(filter.line,
                     absl::StrCat("the ", map ? "filter" : "test", " '", name,
                                  "' is not supported"));
}

}  // namespace

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseExpression() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr expression, ParseOr());
  while (Accept("if")) {
    ExpressionPtr conditional = New(Kind::kConditional);
    RING_RETURN_IF_ERROR(AddOperand(conditional.get(), std::move(expression)));
    RING_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
    RING_RETURN_IF_ERROR(AddOperand(conditional.get(), std::move(condition)));
    if (Accept("else")) {
      if (++open_ > kMaxTemplateDepth) return Error("nested too deeply");
      RING_ASSIGN_OR_RETURN(ExpressionPtr otherwise, ParseExpression());
      --open_;
      RING_RETURN_IF_ERROR(AddOperand(conditional.get(), std::move(otherwise)));
    } else {
      conditional->operands.push_back(nullptr);
    }
    expression = std::move(conditional);
  }
  return expression;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTuple() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr first, ParseExpression());
  if (!Peek().Is(",")) return first;
  ExpressionPtr tuple = New(Kind::kTuple);
  RING_RETURN_IF_ERROR(AddOperand(tuple.get(), std::move(first)));
  while (Accept(",")) {
    if (Peek().Is(")") || Peek().kind == Token::Kind::kTagEnd) break;
    RING_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    RING_RETURN_IF_ERROR(AddOperand(tuple.get(), std::move(item)));
  }
  return tuple;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseOr() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
  while (Accept("or")) {
    RING_ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
    RING_ASSIGN_OR_RETURN(left,
                          Binary(Kind::kOr, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseAnd() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
  while (Accept("and")) {
    RING_ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
    RING_ASSIGN_OR_RETURN(
        left, Binary(Kind::kAnd, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseNot() {
  if (!Accept("not")) return ParseCompare();
  if (++open_ > kMaxTemplateDepth) return Error("nested too deeply");
  RING_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
  --open_;
  return Unary(Kind::kNot, std::move(operand));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseCompare() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  ExpressionPtr compare;
  for (;;) {
    std::optional<Comparison> comparison = ComparisonOf(Peek());
    if (comparison.has_value()) {
      Next();
    } else if (Peek().Is("not") && Peek(1).Is("in")) {
      Next();
      Next();
      comparison = Comparison::kNotIn;
    } else {
      break;
    }
    if (compare == nullptr) {
      compare = New(Kind::kCompare);
      RING_RETURN_IF_ERROR(AddOperand(compare.get(), std::move(first)));
    }
    compare->comparisons.push_back(*comparison);
    RING_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSum());
    RING_RETURN_IF_ERROR(AddOperand(compare.get(), std::move(operand)));
  }
  return compare != nullptr ? std::move(compare) : std::move(first);
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSum() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr left, ParseConcat());
  while (Peek().Is("+") || Peek().Is("-")) {
    const BinaryOperator op =
        Next().text == "+" ? BinaryOperator::kAdd : BinaryOperator::kSub;
    RING_ASSIGN_OR_RETURN(ExpressionPtr right, ParseConcat());
    RING_ASSIGN_OR_RETURN(
        left, Binary(Kind::kBinary, std::move(left), std::move(right)));
    left->binary = op;
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseConcat() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
  if (!Peek().Is("~")) return first;
  ExpressionPtr concat = New(Kind::kConcat);
  RING_RETURN_IF_ERROR(AddOperand(concat.get(), std::move(first)));
  while (Accept("~")) {
    RING_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseProduct());
    RING_RETURN_IF_ERROR(AddOperand(concat.get(), std::move(operand)));
  }
  return concat;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseProduct() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr left, ParsePower());
  while (const std::optional<BinaryOperator> op = ProductOf(Peek())) {
    Next();
    RING_ASSIGN_OR_RETURN(ExpressionPtr right, ParsePower());
    RING_ASSIGN_OR_RETURN(
        left, Binary(Kind::kBinary, std::move(left), std::move(right)));
    left->binary = *op;
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePower() {
  RING_ASSIGN_OR_RETURN(ExpressionPtr left, ParseUnary(true));
  while (Accept("**")) {
    RING_ASSIGN_OR_RETURN(ExpressionPtr right, ParseUnary(true));
    RING_ASSIGN_OR_RETURN(
        left, Binary(Kind::kBinary, std::move(left), std::move(right)));
    left->binary = BinaryOperator::kPow;
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseUnary(bool with_filter) {
  if (++open_ > kMaxTemplateDepth) return Error("nested too deeply");
  ExpressionPtr expression;
  if (Peek().Is("-") || Peek().Is("+")) {
    const Kind kind = Next().text == "-" ? Kind::kNegate : Kind::kPlus;
    RING_ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(false));
    RING_ASSIGN_OR_RETURN(expression, Unary(kind, std::move(operand)));
  } else {
    RING_ASSIGN_OR_RETURN(expression, ParsePrimary());
  }
  RING_ASSIGN_OR_RETURN(expression, ParsePostfix(std::move(expression)));
  if (with_filter) {
    RING_ASSIGN_OR_RETURN(expression, ParseFilters(std::move(expression)));
  }
  --open_;
  return expression;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePrimary() {
  const Token& token = Peek();
  switch (token.kind) {
    case Token::Kind::kName: {
      ExpressionPtr constant = New(Kind::kConstant);
      if (token.Is("true") || token.Is("True")) {
        constant->value = Value::Bool(true);
      } else if (token.Is("false") || token.Is("False")) {
        constant->value = Value::Bool(false);
      } else if (!token.Is("none") && !token.Is("None")) {
        constant->kind = Kind::kName;
        constant->name = token.text;
      }
      Next();
      return constant;
    }
    case Token::Kind::kString: {
      ExpressionPtr constant = New(Kind::kConstant);
      std::string text;
      while (Peek().kind == Token::Kind::kString) text += Next().text;
      constant->value = Value::String(std::move(text));
      return constant;
    }
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      return ParseNumber();
    default:
      if (token.Is("(")) return ParseParenthesis();
      if (token.Is("[")) return ParseList();
      if (token.Is("{")) return ParseDict();
      return Error(absl::StrCat("unexpected ", Describe(token)));
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseNumber() {
  ExpressionPtr constant = New(Kind::kConstant);
  const Token& token = Peek();
  if (token.kind == Token::Kind::kInteger) {
    int64_t integer = 0;
    if (!absl::SimpleAtoi(token.text, &integer)) {
      return Error(
          absl::StrCat("the integer ", token.text, " has over 64 bits"));
    }
    constant->value = Value::Int(integer);
  } else {
    double number = 0;
    if (!absl::SimpleAtod(token.text, &number)) {
      return Error(absl::StrCat("the number ", token.text, " is too large"));
    }
    constant->value = Value::Float(number);
  }
  Next();
  return constant;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseParenthesis() {
  ExpressionPtr empty = New(Kind::kTuple);
  Next();
  if (Accept(")")) return empty;
  RING_ASSIGN_OR_RETURN(ExpressionPtr expression, ParseTuple());
  RING_RETURN_IF_ERROR(Expect(")"));
  return expression;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseList() {
  ExpressionPtr list = New(Kind::kList);
  Next();
  while (!Peek().Is("]")) {
    if (!list->operands.empty()) RING_RETURN_IF_ERROR(Expect(","));
    if (Peek().Is("]")) break;
    RING_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    RING_RETURN_IF_ERROR(AddOperand(list.get(), std::move(item)));
  }
  Next();
  return list;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseDict() {
  ExpressionPtr dict = New(Kind::kDict);
  Next();
  while (!Peek().Is("}")) {
    if (!dict->operands.empty()) RING_RETURN_IF_ERROR(Expect(","));
    if (Peek().Is("}")) break;
    RING_ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
    RING_RETURN_IF_ERROR(AddOperand(dict.get(), std::move(key)));
    RING_RETURN_IF_ERROR(Expect(":"));
    RING_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    RING_RETURN_IF_ERROR(AddOperand(dict.get(), std::move(value)));
  }
  Next();
  return dict;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePostfix(
    ExpressionPtr expression) {
  for (;;) {
    if (Peek().Is(".") || Peek().Is("[")) {
      RING_ASSIGN_OR_RETURN(expression, ParseSubscript(std::move(expression)));
    } else if (Peek().Is("(")) {
      RING_ASSIGN_OR_RETURN(expression, ParseCall(std::move(expression)));
    } else {
      return expression;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFilters(
    ExpressionPtr expression) {
  for (;;) {
    if (Peek().Is("|")) {
      Next();
      ExpressionPtr filter = New(Kind::kFilter);
      RING_RETURN_IF_ERROR(ExpectName(&filter->name));
      if (!IsFilter(filter->name)) {
        return ErrorAtLine(
            filter->line,
            absl::StrCat("the filter '", filter->name, "' is not supported"));
      }
      RING_RETURN_IF_ERROR(AddOperand(filter.get(), std::move(expression)));
      if (Peek().Is("(")) RING_RETURN_IF_ERROR(ParseArguments(filter.get()));
      RING_RETURN_IF_ERROR(CheckAppliedName(*filter));
      expression = std::move(filter);
    } else if (Peek().Is("is")) {
      RING_ASSIGN_OR_RETURN(expression, ParseTest(std::move(expression)));
    } else if (Peek().Is("(")) {
      RING_ASSIGN_OR_RETURN(expression, ParseCall(std::move(expression)));
    } else {
      return expression;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr value) {
  Next();  // is
  const bool negated = Accept("not");
  ExpressionPtr test = New(Kind::kTest);
  RING_RETURN_IF_ERROR(ExpectName(&test->name));
  if (!IsTest(test->name)) {
    return ErrorAtLine(test->line, absl::StrCat("the test '", test->name,
                                                "' is not supported"));
  }
  RING_RETURN_IF_ERROR(AddOperand(test.get(), std::move(value)));
  if (Peek().Is("(")) {
    RING_RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (StartsTestArgument(Peek())) {
    if (Peek().Is("is")) return Error("tests cannot be chained");
    RING_ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    RING_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    RING_RETURN_IF_ERROR(AddOperand(test.get(), std::move(argument)));
  }
  if (!negated) return test;
  return Unary(Kind::kNot, std::move(test));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSubscript(
    ExpressionPtr object) {
  if (Accept(".")) {
    if (Peek().kind == Token::Kind::kInteger) {
      RING_ASSIGN_OR_RETURN(ExpressionPtr index, ParseNumber());
      return Binary(Kind::kItem, std::move(object), std::move(index));
    }
    ExpressionPtr attribute = New(Kind::kAttribute);
    RING_RETURN_IF_ERROR(ExpectName(&attribute->name));
    if (absl::StartsWith(attribute->name, "__")) {
      return ErrorAtLine(attribute->line,
                         absl::StrCat("the attribute '", attribute->name,
                                      "' is not supported"));
    }
    RING_RETURN_IF_ERROR(AddOperand(attribute.get(), std::move(object)));
    return attribute;
  }
  RING_RETURN_IF_ERROR(Expect("["));
  ExpressionPtr slice = New(Kind::kSlice);
  RING_RETURN_IF_ERROR(AddOperand(slice.get(), std::move(object)));
  int colons = 0;
  ExpressionPtr part;
  // Collects up to three parts; one without any colon is an index.
  for (;;) {
    if (Peek().Is(":") && colons < 2) {
      Next();
      ++colons;
      RING_RETURN_IF_ERROR(AddOperand(
          slice.get(), part ? std::move(part) : New(Kind::kConstant)));
      part = nullptr;
    } else if (Accept("]")) {
      break;
    } else if (part == nullptr) {
      RING_ASSIGN_OR_RETURN(part, ParseExpression());
    } else {
      return Error(
          absl::StrCat("unexpected ", Describe(Peek()), " in a subscript"));
    }
  }
  if (colons == 0) {
    if (part == nullptr) return Error("an empty subscript");
    return Binary(Kind::kItem, std::move(slice->operands[0]), std::move(part));
  }
  RING_RETURN_IF_ERROR(
      AddOperand(slice.get(), part ? std::move(part) : New(Kind::kConstant)));
  if (colons == 1) slice->operands.push_back(New(Kind::kConstant));
  return slice;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseCall(
    ExpressionPtr callee) {
  ExpressionPtr call = New(Kind::kCall);
  if (callee->kind == Kind::kAttribute && !IsSupportedMethod(callee->name)) {
    return Error(
        absl::StrCat("the method '", callee->name, "' is not supported"));
  }
  if (callee->kind == Kind::kName) {
    called_names_.emplace(callee->name, call->line);
  }
  RING_RETURN_IF_ERROR(AddOperand(call.get(), std::move(callee)));
  RING_RETURN_IF_ERROR(ParseArguments(call.get()));
  return call;
}

absl::Status ExpressionParser::ParseArguments(Expression* call) {
  RING_RETURN_IF_ERROR(Expect("("));
  bool first = true;
  while (!Peek().Is(")")) {
    if (!first) RING_RETURN_IF_ERROR(Expect(","));
    if (!first && Peek().Is(")")) break;
    first = false;
    if (Peek().Is("*") || Peek().Is("**")) {
      return Error("unpacked arguments are not supported");
    }
    if (Peek().kind == Token::Kind::kName && Peek(1).Is("=")) {
      const std::string name = Next().text;
      Next();
      RING_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      call->depth = std::max(call->depth, value->depth + 1);
      call->named.emplace_back(name, std::move(value));
    } else if (!call->named.empty()) {
      return Error("an argument without a name after one with a name");
    } else {
      RING_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      RING_RETURN_IF_ERROR(AddOperand(call, std::move(value)));
    }
  }
  return Expect(")");
}

ExpressionPtr ExpressionParser::New(Kind kind) const {
  ExpressionPtr expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = Peek().line;
  return expression;
}

absl::Status ExpressionParser::AddOperand(Expression* parent,
                                          ExpressionPtr operand) const {
  parent->depth = std::max(parent->depth, operand->depth + 1);
  if (parent->depth > kMaxTemplateDepth) return Error("nested too deeply");
  parent->operands.push_back(std::move(operand));
  return absl::OkStatus();
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Unary(
    Kind kind, ExpressionPtr operand) const {
  ExpressionPtr expression = New(kind);
  RING_RETURN_IF_ERROR(AddOperand(expression.get(), std::move(operand)));
  return expression;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Binary(
    Kind kind, ExpressionPtr left, ExpressionPtr right) const {
  ExpressionPtr expression = New(kind);
  expression->line = left->line;
  RING_RETURN_IF_ERROR(AddOperand(expression.get(), std::move(left)));
  RING_RETURN_IF_ERROR(AddOperand(expression.get(), std::move(right)));
  return expression;
}

const Token& ExpressionParser::Peek(size_t ahead) const {
  return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
}

Token ExpressionParser::Next() {
  Token token = Peek();
  if (next_ + 1 < tokens_.size()) ++next_;
  return token;
}

bool ExpressionParser::Accept(absl::string_view what) {
  if (!Peek().Is(what)) return false;
  Next();
  return true;
}

absl::Status ExpressionParser::Expect(absl::string_view what) {
  if (Accept(what)) return absl::OkStatus();
  return Error(absl::StrCat("expected '", what, "', not ", Describe(Peek())));
}

absl::Status ExpressionParser::ExpectName(std::string* name) {
  if (Peek().kind != Token::Kind::kName) {
    return Error(absl::StrCat("expected a name, not ", Describe(Peek())));
  }
  *name = Next().text;
  return absl::OkStatus();
}

absl::Status ExpressionParser::Error(absl::string_view what) const {
  return ErrorAtLine(Peek().line, what);
}

}  // namespace ring::jinja
