"""Renders the same templates with python3-jinja2 and with the interpreter.

usage: jinja_differential.py DRIVER TEST_DATA

The environment is the one Hugging Face gives to chat templates. Wherever
Jinja2 renders a text, the driver must render the same; wherever it raises, the
driver must report an error.
"""

import itertools
import json
import pathlib
import subprocess
import sys

import jinja2.ext
import jinja2.sandbox

from jinja_cases import EXPRESSIONS, REFUSED, TEMPLATES, VARIABLES


def make_environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def tojson(
        value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
    ):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def conversations():
    """Messages of all kinds, with and without tools."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": 'Says "rain" or <sun> & 晴れ.',
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"default": 1.5}},
                    "required": ["city"],
                },
            },
        },
        {"name": "plain", "parameters": {}},
    ]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
    text_call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    user = {"role": "user", "content": "Rain in Köln?"}
    system = {"role": "system", "content": "Be brief."}
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    reasoned = {"role": "assistant", "content": "No.", "reasoning_content": "\nlet me see\n"}
    calling = {"role": "assistant", "content": "", "tool_calls": [call, text_call]}
    saying_and_calling = {
        "role": "assistant", "content": "I look.", "tool_calls": [call],
        "reasoning_content": "which tool?",
    }
    result = {"role": "tool", "content": "rain"}
    wrapped = {"role": "user", "content": "<tool_response>\nsun\n</tool_response>"}
    chats = [
        [],
        [user],
        [system, user],
        [system],
        [user, thought],
        [user, thought, user],
        [system, user, reasoned, user, reasoned],
        [user, calling, result],
        [user, calling, result, result, reasoned, user],
        [system, user, saying_and_calling, result, thought],
        [user, saying_and_calling, wrapped, reasoned],
        [user, calling, result, result, user, system, user],
        [wrapped],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": "  \n x \n"}],
        [{"role": "user", "content": "a<|role_end|>b\n"}],
        [{"role": "strange", "content": "?"}],
    ]
    for messages, with_tools, prompt, thinking in itertools.product(
        chats, [None, [], tools], [False, True], [None, False, True]
    ):
        variables = {"messages": messages, "tools": with_tools, "add_generation_prompt": prompt,
                     "bos_token": "<|startoftext|>", "eos_token": "<|role_end|>"}
        if thinking is not None:
            variables["enable_thinking"] = thinking
        yield variables


def cases(data):
    config = json.loads((data / "ring-tiny" / "tokenizer_config.json").read_text())
    templates = [config["chat_template"]]
    here = pathlib.Path(__file__).parent
    for name in sorted((here / "templates").glob("*.jinja")):
        templates.append(name.read_text())
    for template in templates:
        for variables in conversations():
            yield template, variables
    for template in TEMPLATES:
        yield template, VARIABLES
    for expression in EXPRESSIONS:
        yield "{{ " + expression + " }}", VARIABLES
        yield "{% if " + expression + " %}yes{% else %}no{% endif %}", VARIABLES


def main():
    driver_path, data = sys.argv[1], pathlib.Path(sys.argv[2])
    environment = make_environment()
    driver = subprocess.Popen(
        [driver_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )

    def render(template, variables):
        driver.stdin.write(json.dumps({"template": template, "variables": variables}) + "\n")
        driver.stdin.flush()
        return json.loads(driver.stdout.readline())

    compiled = {}
    count = failures = 0
    for template, variables in cases(data):
        count += 1
        try:
            if template not in compiled:
                compiled[template] = environment.from_string(template)
            expected = {"text": compiled[template].render(**variables)}
        except Exception as error:  # whatever Jinja2 or Python raises
            expected = {"error": f"{type(error).__name__}: {error}"}
        actual = render(template, variables)
        same = actual == expected or ("error" in actual and "error" in expected)
        if not same:
            failures += 1
            print(f"--- template: {template[:400]!r}")
            if variables is not VARIABLES:
                print(f"    variables: {json.dumps(variables)[:600]}")
            print(f"    jinja2: {expected}")
            print(f"    here:   {actual}")
    # Fine for Jinja2, refused here: by name, with the line.
    for template, line, named in REFUSED:
        count += 1
        error = render(template, VARIABLES).get("error", "rendered")
        if f"line {line}:" not in error or named not in error:
            failures += 1
            print(f"--- {template!r}: expected line {line} and {named!r} in: {error}")
    driver.stdin.close()
    driver.wait()
    print(f"{count} cases, {failures} failures")
    return 1 if failures or count < 1000 else 0


if __name__ == "__main__":
    sys.exit(main())
