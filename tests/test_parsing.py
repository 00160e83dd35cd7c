from arlm.parsing import CodeBlock, code_blocks


def codes(text: str) -> list[str]:
    return [block.code for block in code_blocks(text)]


def test_repl_and_python_blocks_are_taken_in_order():
    assert codes("a\n```repl\nx = 1\n```\nb\n```python\ny = 2\n```\n") == ["x = 1", "y = 2"]


def test_blocks_of_other_languages_are_not_code():
    assert codes('```json\n{"a": 1}\n```\n```\nplain\n```\n```bash\nls\n```') == []


def test_a_fence_inside_a_triple_quoted_string_does_not_close_the_block():
    code = 'p = """\nUse this form:\n```json\n{}\n```\n"""\nprint(p)'
    assert codes(f"```repl\n{code}\n```\nafter") == [code]


def test_a_fence_inside_a_string_with_escaped_quotes_does_not_close_the_block():
    code = "p = '''it\\'''s\n```\n'''\nprint(p)"
    assert codes(f"```repl\n{code}\n```") == [code]


def test_quotes_in_comments_and_plain_strings_do_not_open_a_string():
    code = 'x = \'a"""b\'  # don\'t """ open\ny = "it\'s"'
    assert codes(f"```repl\n{code}\n```\n```repl\nz\n```") == [code, "z"]


def test_a_string_that_never_ends_is_closed_by_the_first_fence():
    assert codes('```repl\nx = """never\n```\ntext\n```repl\ny\n```') == ['x = """never', "y"]


def test_a_longer_fence_may_hold_a_shorter_one():
    assert codes("````repl\nx = 1\n```\ny = 2\n````") == ["x = 1\n```\ny = 2"]


def test_a_block_without_its_closing_fence_is_marked_open():
    assert code_blocks("```repl\nx = 1") == [CodeBlock(code="x = 1", closed=False)]


def test_empty_blocks_are_left_out_and_crlf_is_understood():
    assert codes("```repl\r\n\r\n```\r\n```python\r\nx = 1\r\n```\r\n") == ["x = 1"]


def test_tags_are_case_insensitive_and_may_be_indented_a_little():
    assert codes("  ```Python\n  x = 1\n  ```") == ["  x = 1"]
