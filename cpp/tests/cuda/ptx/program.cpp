#include "cuda/ptx/program.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace vlkv::ptx {
namespace {

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", where.c_str(), what.c_str());
  std::abort();
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::string without_comments(const std::string& text) {
  std::string kept;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
      kept += '\n';
    } else if (text.compare(i, 2, "/*") == 0) {
      i = std::min(text.find("*/", i), text.size() - 2) + 1;
    } else {
      kept += text[i];
    }
  }
  return kept;
}

// Reads one kernel's text, from `.entry` to the brace that ends it.
class Reader {
 public:
  Reader(Kernel& kernel, const std::string& path) : kernel_(kernel), path_(path) {}

  void read(const std::string& text, size_t entry) {
    const size_t open = text.find('{', entry);
    header(text.substr(entry, open - entry));
    // Statements end with a semicolon or, labels, with a colon. Inner braces are an asm's own, or a vector's.
    std::string statement;
    int depth = 1, vector = 0;
    line_ = static_cast<int>(std::count(text.begin(), text.begin() + static_cast<long>(open), '\n')) + 1;
    for (size_t i = open + 1; depth > 0; ++i) {
      if (i >= text.size()) fail(path_, "the kernel has no end");
      const char c = text[i];
      if (c == '\n') ++line_;
      const bool begins = trimmed(statement).empty();
      if (c == '{' && begins) {
        ++depth;
      } else if (c == '}' && begins) {
        --depth;
      } else if (c == ';') {
        take(trimmed(statement));
        statement.clear();
      } else if (c == ':' && vector == 0 && trimmed(statement).front() == '$') {
        labels_[trimmed(statement)] = static_cast<int64_t>(kernel_.instructions.size());
        statement.clear();
      } else {
        statement += c;
      }
    }
    for (const auto& [index, label] : branches_) {
      if (labels_.count(label) == 0) fail(path_, "no label " + label);
      kernel_.instructions[index].target = labels_[label];
    }
    kernel_.registers = static_cast<int32_t>(registers_.size());
  }

 private:
  void header(const std::string& text) {
    size_t at = 0;
    while ((at = text.find(".param", at)) != std::string::npos) {
      const size_t bracket = text.find('[', at), end = text.find_first_of(",)", at);
      if (bracket == std::string::npos || bracket > end)
        fail(path_, "a parameter is no array of bytes: " + text);
      const size_t name_end = bracket, name_begin = text.find_last_of(" \t", name_end) + 1;
      symbols_[text.substr(name_begin, name_end - name_begin)] = kernel_.parameter_bytes;
      kernel_.parameter_bytes += std::stoul(text.substr(bracket + 1));
      at = end;
    }
    const size_t bound = text.find(".maxntid");
    if (bound != std::string::npos) kernel_.threads = std::stoi(text.substr(bound + 8));
  }

  void take(std::string text) {
    if (text.empty()) return;
    if (text[0] == '.') {
      directive(text);
      return;
    }
    Instruction made;
    made.line = line_, made.text = text;
    if (text[0] == '@') {
      made.negated = text[1] == '!';
      const size_t end = text.find_first_of(" \t");
      made.predicate = register_of(text.substr(made.negated ? 2 : 1, end - (made.negated ? 2 : 1)));
      text = trimmed(text.substr(end));
    }
    const size_t end = text.find_first_of(" \t{");
    const std::string opcode = text.substr(0, end);
    made.step = step_of(opcode);
    if (made.step == nullptr) fail(path_ + ":" + std::to_string(line_), "no step for " + text);
    const std::string rest = end == std::string::npos ? "" : trimmed(text.substr(end));
    if (opcode.rfind("bra", 0) == 0) {
      branches_.emplace_back(kernel_.instructions.size(), rest);
    } else {
      operands(rest, made);
    }
    kernel_.instructions.push_back(std::move(made));
  }

  void directive(const std::string& text) {
    if (text.rfind(".shared", 0) == 0) {
      // .shared .align 16 .b8 name[bytes]
      const size_t bracket = text.find('['), begin = text.find_last_of(" \t", bracket) + 1;
      const size_t align = text.find(".align");
      const size_t multiple = align == std::string::npos ? 16 : std::stoul(text.substr(align + 6));
      kernel_.shared_bytes = (kernel_.shared_bytes + multiple - 1) / multiple * multiple;
      symbols_[text.substr(begin, bracket - begin)] = kernel_.shared_bytes;
      kernel_.shared_bytes += std::stoul(text.substr(bracket + 1));
    } else if (text.rfind(".reg", 0) != 0 && text.rfind(".pragma", 0) != 0 && text.rfind(".loc", 0) != 0) {
      fail(path_ + ":" + std::to_string(line_), "an unknown directive: " + text);
    }
  }

  int32_t register_of(const std::string& name) {
    const auto [at, fresh] = registers_.emplace(name, static_cast<int32_t>(registers_.size()));
    return at->second;
  }

  Operand operand(const std::string& text) {
    Operand made;
    if (text == "%tid.x" || text == "%ctaid.x") {
      made.kind = Kind::kRegister, made.reg = text == "%tid.x" ? kThreadIndex : kBlockIndex;
    } else if (text == "_") {
      made.kind = Kind::kPart;
    } else if (text[0] == '%') {
      made.kind = Kind::kRegister, made.reg = register_of(text);
    } else if (text.rfind("0f", 0) == 0 || text.rfind("0d", 0) == 0) {
      made.value = std::stoull(text.substr(2), nullptr, 16);
    } else if (std::isdigit(text[0]) != 0) {
      made.value = std::stoull(text, nullptr, 0);
    } else if (text[0] == '-') {
      made.value = uint64_t{0} - std::stoull(text.substr(1), nullptr, 0);
    } else if (symbols_.count(text) != 0) {
      made.value = symbols_[text];
    } else {
      fail(path_ + ":" + std::to_string(line_), "no operand: " + text);
    }
    return made;
  }

  // [base], [base+bytes], [base+-bytes]; the base is a register or a symbol.
  Operand address(const std::string& text) {
    const size_t plus = text.find('+');
    Operand made = operand(trimmed(text.substr(0, plus)));
    if (plus != std::string::npos) made.value += operand(trimmed(text.substr(plus + 1))).value;
    return made;
  }

  void operands(const std::string& text, Instruction& made) {
    std::string part;
    const auto add = [&] {
      part = trimmed(part);
      if (part.empty()) return;
      if (part[0] == '{') {
        std::stringstream elements(part.substr(1, part.size() - 2));
        int count = 0;
        for (std::string one; std::getline(elements, one, ','); ++count)
          made.operands.push_back(operand(trimmed(one)));
        made.sizes.push_back(count);
      } else {
        made.operands.push_back(part[0] == '[' ? address(part.substr(1, part.size() - 2)) : operand(part));
        made.sizes.push_back(1);
      }
      part.clear();
    };
    int depth = 0;
    for (const char c : text) {
      depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
      if ((c == ',' || c == '|') && depth == 0)
        add();
      else
        part += c;
    }
    add();
  }

  static constexpr int32_t kThreadIndex = 0, kBlockIndex = 1;

  Kernel& kernel_;
  std::string path_;
  int line_ = 0;
  std::map<std::string, int32_t> registers_{{"%tid.x", kThreadIndex}, {"%ctaid.x", kBlockIndex}};
  std::map<std::string, size_t> symbols_;
  std::map<std::string, int64_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

Program::Program(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::ifstream file(path);
    if (!file) fail(path, "can't be opened");
    std::stringstream all;
    all << file.rdbuf();
    const std::string text = without_comments(all.str());
    for (size_t at = 0; (at = text.find(".entry ", at)) != std::string::npos; ++at) {
      const size_t begin = at + 7, end = text.find_first_of("( \n", begin);
      texts_[text.substr(begin, end - begin)] = {path, text.substr(at, text.find(".entry ", begin) - at), 0};
    }
  }
}

const Kernel& Program::kernel(const std::string& name) {
  const auto known = kernels_.find(name);
  if (known != kernels_.end()) return known->second;
  const auto text = texts_.find(name);
  if (text == texts_.end()) fail(name, "no PTX of that kernel");
  Kernel& made = kernels_[name];
  made.name = name;
  Reader(made, text->second.path).read(text->second.text, text->second.entry);
  return made;
}

std::vector<std::string> Program::names() const {
  std::vector<std::string> all;
  for (const auto& [name, text] : texts_) all.push_back(name);
  return all;
}

}  // namespace vlkv::ptx
