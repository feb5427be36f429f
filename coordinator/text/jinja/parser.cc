#include "coordinator/text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/text/jinja/expression_parser.h"
#include "coordinator/text/jinja/lexer.h"
#include "coordinator/text/jinja/limits.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using StatementPtr = std::unique_ptr<Statement>;

class Parser {
 public:
  explicit Parser(const std::vector<Token>* tokens) : expressions_(tokens) {}

  absl::StatusOr<Body> Run() {
    RING_ASSIGN_OR_RETURN(Body body, ParseBody({}));
    if (Peek().kind != Token::Kind::kEnd) {
      return Error(absl::StrCat("unexpected '", Peek(1).text, "'"));
    }
    for (const auto& [name, line] : expressions_.called_names()) {
      if (!IsFunction(name) && macros_.count(name) == 0) {
        return ErrorAtLine(
            line, absl::StrCat("the function '", name, "' is not supported"));
      }
    }
    return body;
  }

 private:
  const Token& Peek(size_t ahead = 0) const { return expressions_.Peek(ahead); }
  absl::Status Error(absl::string_view what) const {
    return expressions_.Error(what);
  }
  // Takes "%}".
  absl::Status EndTag() {
    if (Peek().kind != Token::Kind::kTagEnd) {
      return Error(absl::StrCat("unexpected '", Peek().text, "' in a tag"));
    }
    expressions_.Next();
    return absl::OkStatus();
  }
  bool AtTag(std::initializer_list<absl::string_view> names) const {
    return Peek().kind == Token::Kind::kTagBegin &&
           std::any_of(names.begin(), names.end(),
                       [this](const auto& name) { return Peek(1).Is(name); });
  }
  // Takes "{% name".
  void BeginTag() {
    expressions_.Next();
    expressions_.Next();
  }

  // Statements up to a tag of one of these names, which is left in place; to
  // the end of the template if there are none.
  absl::StatusOr<Body> ParseBody(
      std::initializer_list<absl::string_view> ends) {
    if (++depth_ > kMaxTemplateDepth) return Error("nested too deeply");
    const int begin_line = Peek().line;
    Body body;
    while (!AtTag(ends)) {
      if (Peek().kind == Token::Kind::kEnd) {
        if (ends.size() == 0) break;
        return Error(absl::StrCat("'", absl::StrJoin(ends, "' or '"),
                                  "' is missing for the block of line ",
                                  begin_line));
      }
      RING_ASSIGN_OR_RETURN(StatementPtr statement, ParseStatement());
      body.push_back(std::move(statement));
    }
    --depth_;
    return body;
  }

  absl::StatusOr<StatementPtr> ParseStatement() {
    if (Peek().kind == Token::Kind::kText) {
      StatementPtr text = New(Statement::Kind::kText);
      text->text = expressions_.Next().text;
      return text;
    }
    if (Peek().kind == Token::Kind::kPrintBegin) return ParsePrint();
    if (AtTag({"if"})) return ParseIf();
    if (AtTag({"for"})) return ParseFor();
    if (AtTag({"set"})) return ParseSet();
    if (AtTag({"macro"})) return ParseMacro();
    if (AtTag({"break", "continue"})) return ParseLoopControl();
    return ErrorAtLine(Peek(1).line, absl::StrCat("the tag '", Peek(1).text,
                                                  "' is not supported here"));
  }

  absl::StatusOr<StatementPtr> ParsePrint() {
    StatementPtr print = New(Statement::Kind::kPrint);
    expressions_.Next();
    RING_ASSIGN_OR_RETURN(print->expression, expressions_.ParseExpression());
    if (Peek().kind != Token::Kind::kPrintEnd) {
      return Error(absl::StrCat("expected '}}', not '", Peek().text, "'"));
    }
    expressions_.Next();
    return print;
  }

  absl::StatusOr<StatementPtr> ParseIf() {
    StatementPtr statement = New(Statement::Kind::kIf);
    bool more = true;
    while (more) {
      // At "if", "elif" or "else".
      const bool has_condition = !AtTag({"else"});
      BeginTag();
      Statement::Branch branch;
      if (has_condition) {
        RING_ASSIGN_OR_RETURN(branch.condition, expressions_.ParseOr());
      }
      RING_RETURN_IF_ERROR(EndTag());
      if (has_condition) {
        RING_ASSIGN_OR_RETURN(branch.body,
                              ParseBody({"elif", "else", "endif"}));
      } else {
        RING_ASSIGN_OR_RETURN(branch.body, ParseBody({"endif"}));
      }
      statement->branches.push_back(std::move(branch));
      more = !AtTag({"endif"});
    }
    BeginTag();
    RING_RETURN_IF_ERROR(EndTag());
    return statement;
  }

  absl::StatusOr<StatementPtr> ParseFor() {
    StatementPtr loop = New(Statement::Kind::kFor);
    BeginTag();
    RING_ASSIGN_OR_RETURN(loop->targets, ParseTargets());
    RING_RETURN_IF_ERROR(expressions_.Expect("in"));
    RING_ASSIGN_OR_RETURN(loop->expression, expressions_.ParseOr());
    if (expressions_.Accept("if")) {
      RING_ASSIGN_OR_RETURN(loop->condition, expressions_.ParseExpression());
    }
    if (Peek().Is("recursive")) {
      return Error("recursive loops are not supported");
    }
    RING_RETURN_IF_ERROR(EndTag());
    ++loops_;
    RING_ASSIGN_OR_RETURN(loop->body, ParseBody({"else", "endfor"}));
    --loops_;
    if (AtTag({"else"})) {
      BeginTag();
      RING_RETURN_IF_ERROR(EndTag());
      RING_ASSIGN_OR_RETURN(loop->else_body, ParseBody({"endfor"}));
    }
    BeginTag();
    RING_RETURN_IF_ERROR(EndTag());
    return loop;
  }

  // "a", "a, b" or "(a, b)".
  absl::StatusOr<std::vector<std::string>> ParseTargets() {
    const bool parenthesis = expressions_.Accept("(");
    std::vector<std::string> targets;
    do {
      std::string name;
      RING_RETURN_IF_ERROR(expressions_.ExpectName(&name));
      if (name == "loop") return Error("'loop' cannot be assigned to");
      targets.push_back(std::move(name));
    } while (expressions_.Accept(","));
    if (parenthesis) RING_RETURN_IF_ERROR(expressions_.Expect(")"));
    return targets;
  }

  absl::StatusOr<StatementPtr> ParseSet() {
    StatementPtr set = New(Statement::Kind::kSet);
    BeginTag();
    RING_ASSIGN_OR_RETURN(set->targets, ParseTargets());
    if (set->targets.size() == 1 && expressions_.Accept(".")) {
      RING_RETURN_IF_ERROR(expressions_.ExpectName(&set->attribute));
    }
    if (expressions_.Accept("=")) {
      RING_ASSIGN_OR_RETURN(set->expression, expressions_.ParseTuple());
      RING_RETURN_IF_ERROR(EndTag());
      return set;
    }
    if (set->targets.size() != 1 || !set->attribute.empty()) {
      return Error("a block can be set to one name only");
    }
    set->kind = Statement::Kind::kSetBlock;
    RING_RETURN_IF_ERROR(EndTag());
    // "break" inside would leave the block half rendered.
    const int loops = std::exchange(loops_, 0);
    RING_ASSIGN_OR_RETURN(set->body, ParseBody({"endset"}));
    loops_ = loops;
    BeginTag();
    RING_RETURN_IF_ERROR(EndTag());
    return set;
  }

  absl::StatusOr<StatementPtr> ParseMacro() {
    StatementPtr macro = New(Statement::Kind::kMacro);
    if (loops_ > 0 || in_macro_) {
      return Error("a macro inside a loop or a macro is not supported");
    }
    BeginTag();
    std::string name;
    RING_RETURN_IF_ERROR(expressions_.ExpectName(&name));
    macro->targets = {name};
    macros_.insert(name);
    RING_RETURN_IF_ERROR(expressions_.Expect("("));
    while (!Peek().Is(")")) {
      if (!macro->parameters.empty()) {
        RING_RETURN_IF_ERROR(expressions_.Expect(","));
      }
      Statement::Parameter parameter;
      RING_RETURN_IF_ERROR(expressions_.ExpectName(&parameter.name));
      if (expressions_.Accept("=")) {
        RING_ASSIGN_OR_RETURN(parameter.fallback,
                              expressions_.ParseExpression());
      }
      macro->parameters.push_back(std::move(parameter));
    }
    RING_RETURN_IF_ERROR(expressions_.Expect(")"));
    RING_RETURN_IF_ERROR(EndTag());
    in_macro_ = true;
    RING_ASSIGN_OR_RETURN(macro->body, ParseBody({"endmacro"}));
    in_macro_ = false;
    BeginTag();
    // "endmacro" may repeat the name.
    expressions_.Accept(name);
    RING_RETURN_IF_ERROR(EndTag());
    return macro;
  }

  absl::StatusOr<StatementPtr> ParseLoopControl() {
    if (loops_ == 0) {
      return ErrorAtLine(
          Peek(1).line, absl::StrCat("'", Peek(1).text, "' outside of a loop"));
    }
    StatementPtr control =
        New(Peek(1).Is("break") ? Statement::Kind::kBreak
                                : Statement::Kind::kContinue);
    BeginTag();
    RING_RETURN_IF_ERROR(EndTag());
    return control;
  }

  StatementPtr New(Statement::Kind kind) const {
    StatementPtr statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = Peek().line;
    return statement;
  }

  ExpressionParser expressions_;
  int depth_ = 0;  // of blocks
  int loops_ = 0;  // around the current statement
  bool in_macro_ = false;
  std::set<std::string> macros_;
};

}  // namespace

bool IsFunction(absl::string_view name) {
  return name == "namespace" || name == "range" || name == "dict" ||
         name == "raise_exception" || name == "strftime_now";
}

absl::StatusOr<Body> Parse(absl::string_view source) {
  RING_ASSIGN_OR_RETURN(const std::vector<Token> tokens, Tokenize(source));
  return Parser(&tokens).Run();
}

}  // namespace ring::jinja
