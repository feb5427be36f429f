// Expressions of templates, with Jinja2's precedence.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/lexer.h"

namespace ring::jinja {

// Reads expressions from a list of tokens. What no template can use is refused
// here, with its line: unknown filters, tests and methods, nesting deeper than
// kMaxTemplateDepth. Confined to one parse.
class ExpressionParser {
 public:
  // `tokens` end with kEnd and must outlive this.
  explicit ExpressionParser(const std::vector<Token>* tokens)
      : tokens_(*tokens) {}

  // a if b else c, and all that binds tighter.
  absl::StatusOr<ExpressionPtr> ParseExpression();
  // As ParseExpression, or several with commas between them: a tuple.
  absl::StatusOr<ExpressionPtr> ParseTuple();
  // Without "if" and "else": conditions, and what a for loop goes through.
  absl::StatusOr<ExpressionPtr> ParseOr();

  const Token& Peek(size_t ahead = 0) const;
  Token Next();
  // Takes the next token if it is this name or operator.
  bool Accept(absl::string_view what);
  absl::Status Expect(absl::string_view what);
  // Takes a name into *name.
  absl::Status ExpectName(std::string* name);
  // INVALID_ARGUMENT with the line of the next token.
  absl::Status Error(absl::string_view what) const;

  // Functions called by name, with the first line each, to be checked against
  // what the template defines once it is read.
  const std::set<std::pair<std::string, int>>& called_names() const {
    return called_names_;
  }

 private:
  using Kind = Expression::Kind;

  absl::StatusOr<ExpressionPtr> ParseAnd();
  absl::StatusOr<ExpressionPtr> ParseNot();
  absl::StatusOr<ExpressionPtr> ParseCompare();
  absl::StatusOr<ExpressionPtr> ParseSum();
  absl::StatusOr<ExpressionPtr> ParseConcat();
  absl::StatusOr<ExpressionPtr> ParseProduct();
  absl::StatusOr<ExpressionPtr> ParsePower();
  absl::StatusOr<ExpressionPtr> ParseUnary(bool with_filter);
  absl::StatusOr<ExpressionPtr> ParsePrimary();
  absl::StatusOr<ExpressionPtr> ParseNumber();
  absl::StatusOr<ExpressionPtr> ParseParenthesis();
  absl::StatusOr<ExpressionPtr> ParseList();
  absl::StatusOr<ExpressionPtr> ParseDict();
  absl::StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr expression);
  absl::StatusOr<ExpressionPtr> ParseFilters(ExpressionPtr expression);
  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr object);
  absl::StatusOr<ExpressionPtr> ParseCall(ExpressionPtr callee);
  absl::StatusOr<ExpressionPtr> ParseTest(ExpressionPtr value);
  // "(a, b, c=d)" into operands and named of `call`.
  absl::Status ParseArguments(Expression* call);

  ExpressionPtr New(Kind kind) const;
  // Adds an operand and keeps count of the nesting.
  absl::Status AddOperand(Expression* parent, ExpressionPtr operand) const;
  absl::StatusOr<ExpressionPtr> Unary(Kind kind, ExpressionPtr operand) const;
  absl::StatusOr<ExpressionPtr> Binary(Kind kind, ExpressionPtr left,
                                       ExpressionPtr right) const;

  const std::vector<Token>& tokens_;
  size_t next_ = 0;
  int open_ = 0;  // ParseUnary and ParseNot that have not returned
  std::set<std::pair<std::string, int>> called_names_;
};

}  // namespace ring::jinja
