"""What is taken of an SVG, what is left out, and what makes it refused."""

import hashlib
import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from generation import svg
from generation.images import VerifiedImage, verify
from generation.provider import ErrorClass, Failure
from generation.renditions import Renditions

NAMESPACES = (
    'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:ink="http://www.inkscape.org/namespaces/inkscape"'
)
SIZE = 'width="200" height="100"'
RECTANGLE = '<rect width="200" height="100" fill="red"/>'


def document(body=RECTANGLE, attributes=SIZE, before=""):
    return f"{before}<svg {NAMESPACES} {attributes}>{body}</svg>".encode()


def check(data, **limits):
    return verify(io.BytesIO(data), **limits)


def refusal(data, **limits):
    result = check(data, **limits)
    assert isinstance(result, Failure)
    assert result.error_class == ErrorClass.BAD_OUTPUT
    assert result.message.startswith("The SVG ")
    return result.message


def cleaned(data):
    drawing = svg.sanitise(data, max_pixels=1_000_000)
    assert isinstance(drawing, svg.Drawing)
    return drawing.content.decode()


def test_tells_everything_about_a_drawing_and_what_is_to_be_stored_of_it():
    data = document()
    result = check(data)
    assert isinstance(result, VerifiedImage)
    assert (result.format, result.extension, result.content_type) == ("svg", "svg", "image/svg+xml")
    assert (result.width_px, result.height_px) == (200, 100)
    assert result.content is not None
    assert result.content != data
    assert result.size_bytes == len(result.content)
    assert result.sha256 == hashlib.sha256(result.content).hexdigest()


@pytest.mark.parametrize(
    ("attributes", "size_px"),
    [
        (SIZE, (200, 100)),
        ('width="200px" height="100PX"', (200, 100)),
        ('width="1in" height="2.54cm"', (96, 96)),
        ('width="25.4mm" height="72pt"', (96, 96)),
        ('width="101.6q" height="6pc"', (96, 96)),
        ('viewBox="0 0 300 200"', (300, 200)),
        ('viewBox="-10,-10,300,200" width="100%" height="100%"', (300, 200)),
        ('viewBox="0 0 300 200" width="30"', (30, 20)),
        ('viewBox="0 0 300 200" height="30"', (45, 30)),
        ('viewBox="0 0 300 200" width="1e2" height="50"', (100, 50)),
        ('viewBox="0 0 0.2 0.1"', (1, 1)),
    ],
)
def test_size_comes_from_width_height_and_view_box(attributes, size_px):
    drawing = svg.sanitise(document(attributes=attributes), max_pixels=1_000_000)
    assert isinstance(drawing, svg.Drawing)
    assert (drawing.width_px, drawing.height_px) == size_px


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        'width="200"',
        'width="0" height="100"',
        'width="-200" height="100"',
        'width="1e999" height="100"',
        'width="NaN" height="NaN"',
        'width="50%" height="50%"',
        'viewBox="0 0 0 100"',
        'viewBox="0 0 100"',
        'width="2em" height="2em"',
    ],
)
def test_refuses_a_drawing_without_a_size(attributes):
    assert "has no size" in refusal(document(attributes=attributes))


def test_refuses_huge_dimensions_without_drawing_them():
    assert "more than 33,554,432 pixels" in refusal(
        document(attributes='width="100000" height="100000"')
    )
    exact = document(attributes='width="100" height="50"')
    assert isinstance(check(exact, max_pixels=5000), VerifiedImage)
    assert "more than 4,999 pixels" in refusal(exact, max_pixels=4999)


@pytest.mark.parametrize(
    ("attributes", "thumbnail_px", "preview_px"),
    [
        ('viewBox="0 0 3000 1500"', (256, 128), (1024, 512)),
        ('viewBox="0 0 60 30"', (60, 30), (60, 30)),
    ],
)
def test_renditions_are_drawn_at_their_own_size_and_never_enlarged(
    attributes, thumbnail_px, preview_px
):
    circle = '<circle cx="50%" cy="50%" r="25%" fill="red"/>'
    result = check(document(circle, attributes))
    assert isinstance(result, VerifiedImage)
    for file, size_px in ((result.thumbnail, thumbnail_px), (result.preview, preview_px)):
        rendition = Image.open(io.BytesIO(file))
        assert (rendition.format, rendition.size) == ("WEBP", size_px)
        red, _, blue, alpha = rendition.getpixel((size_px[0] // 2, size_px[1] // 2))
        assert (red > 240, blue < 15, alpha) == (True, True, 255)
        assert rendition.getpixel((1, 1))[3] == 0


def test_style_sheets_gradients_and_references_within_the_drawing_are_drawn():
    body = """
        <style>.a { fill: url(#g) }</style>
        <defs>
          <linearGradient id="g"><stop stop-color="#00f"/></linearGradient>
          <rect id="r" class="a" width="100" height="100"/>
        </defs>
        <use xlink:href="#r" transform="translate(50 0)" style="opacity: 1"/>
    """
    result = check(document(body))
    assert isinstance(result, VerifiedImage)
    preview = Image.open(io.BytesIO(result.preview))
    assert preview.getpixel((100, 50))[2] > 240
    assert preview.getpixel((20, 50))[3] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<script>alert(1)</script>", "<script>"),
        ('<script href="https://example.net/a.js"/>', "<script>"),
        ("<g><g><SCRIPT>alert(1)</SCRIPT></g></g>", "<SCRIPT>"),
        ("<foreignObject><p/></foreignObject>", "<foreignObject>"),
        ('<x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script>', "<script>"),
        ('<x:iframe xmlns:x="http://www.w3.org/1999/xhtml" src="x"/>', "<iframe>"),
        ('<a href="javascript:alert(1)"><rect/></a>', "<a>"),
        ('<image href="file:///etc/passwd"/>', "<image>"),
        ('<image xlink:href="data:image/png;base64,AAAA"/>', "<image>"),
        ('<filter><feImage href="https://example.net/"/></filter>', "<feImage>"),
        ('<use id="u"><animate attributeName="href" to="javascript:alert(1)"/></use>', "<animate>"),
        ('<set attributeName="onmouseover" to="alert(1)"/>', "<set>"),
        ('<rect><animateTransform attributeName="transform"/></rect>', "<animateTransform>"),
        ('<handler type="text/javascript"/>', "<handler>"),
        ('<iframe src="https://example.net/"/>', "<iframe>"),
        ('<embed src="https://example.net/"/>', "<embed>"),
        ("<audio/>", "<audio>"),
        ('<rect onload="alert(1)"/>', "event handler, onload"),
        ('<rect ONCLICK="alert(1)"/>', "event handler, ONCLICK"),
        ('<use href="https://example.net/a.svg#b"/>', "refers to something outside"),
        ('<use xlink:href="other.svg#b"/>', "refers to something outside"),
        ('<use href="data:image/svg+xml,&lt;svg/&gt;#a"/>', "refers to something outside"),
        ('<use href=" javascript:alert(1)"/>', "refers to something outside"),
        ('<use href=""/>', "refers to something outside"),
        ('<textPath href="#a b"/>', "refers to something outside"),
        ('<rect fill="url(https://example.net/#a)"/>', "calls url()"),
        ('<rect fill="URL(//example.net/#a)"/>', "calls URL()"),
        ("<rect style=\"fill: url('a.svg#b')\"/>", "calls url()"),
        ('<rect style="background: image-set(&quot;https://example.net/&quot; 1x)"/>', "image-set"),
        ('<rect style="fill: u\\72l(https://example.net/)"/>', "escape or an at-rule"),
        ('<rect style="width: expression(alert(1))"/>', "calls expression()"),
        ('<style>@import "https://example.net/a.css";</style>', "escape or an at-rule"),
        ("<style>@font-face { src: url(https://example.net/f) }</style>", "escape or an at-rule"),
        ("<style><![CDATA[a { fill: url(https://example.net/) }]]></style>", "calls url()"),
        ("<style>a { cursor: url(#a), url(https://example.net/) }</style>", "calls url()"),
        ("<style><style>@import 'a'</style></style>", "within a style sheet"),
    ],
)
def test_refuses_what_could_run_load_link_or_move(body, words):
    assert words in refusal(document(RECTANGLE + body))


def test_refuses_an_event_handler_on_the_drawing_itself():
    assert "onload" in refusal(document(attributes=f'{SIZE} onload="alert(1)"'))


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]>"
)


@pytest.mark.parametrize(
    "before",
    [
        BILLION_LAUGHS,
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "https://example.net/svg11.dtd">',
        '<!DOCTYPE svg [<!ENTITY file SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE svg [<!ATTLIST rect onload CDATA "alert(1)">]>',
        '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY % all SYSTEM "https://example.net/"> %all;]>',
    ],
)
def test_refuses_a_document_type(before):
    assert "document type or entities" in refusal(document(before=before))


def test_refuses_what_is_damaged_or_no_drawing():
    assert "damaged or incomplete" in refusal(document()[:-3])
    assert "damaged or incomplete" in refusal(document("<text>&undeclared;</text>"))
    assert "damaged" in refusal(document(before='<?xml version="1.0" encoding="no-such"?>'))
    assert "damaged" in refusal(b'<?xml version="1.0" encoding="utf-8"?><svg>\xff</svg>')
    assert "another kind of XML document, <feed>" in refusal(b'<?xml version="1.0"?><feed/>')


def test_refuses_too_many_and_too_deep_elements():
    assert "more than 100,000 elements" in refusal(document("<g/>" * 100_001))
    assert "more than 100 deep" in refusal(document("<g>" * 5_000 + "</g>" * 5_000))


def test_refuses_more_bytes_than_it_reads():
    assert "larger than" in refusal(document("<!--" + "x" * svg.MAX_BYTES + "-->"))


def test_leaves_out_what_draws_nothing():
    content = cleaned(
        document(
            "<!-- by an editor --><?xml-stylesheet href='a.css'?>"
            "<metadata><x>secret</x></metadata><ink:grid>secret</ink:grid>"
            '<title>A &lt;b&gt;</title><g ink:label="secret" data-x="secret" tabindex="1" '
            'xml:base="https://example.net/" requiredExtensions="secret">'
            '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd"/></g>',
            attributes='viewBox="0 0 3 2" xml:space="preserve"',
        )
    )
    assert content == (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 3 2" width="3" height="2">'
        "<title>A &lt;b&gt;</title><g /></svg>"
    )


def test_sanitising_what_was_sanitised_changes_nothing():
    once = cleaned(document('<style>.a > .b { fill: red }</style><use xlink:href="#x"/>'))
    assert cleaned(once.encode()) == once
    assert [element.tag for element in ElementTree.fromstring(once)] == [
        "{http://www.w3.org/2000/svg}style",
        "{http://www.w3.org/2000/svg}use",
    ]


def test_a_drawing_may_leave_out_the_namespace_and_begin_with_a_comment():
    result = check(b"\n<!-- c --><svg width='30' height='20'><rect width='9' height='9'/></svg>")
    assert isinstance(result, VerifiedImage)
    assert result.content is not None
    assert result.content.startswith(b'<svg xmlns="http://www.w3.org/2000/svg"')


def test_a_drawing_that_takes_too_much_memory_ends_only_itself():
    data = document("<g/>" * 400_000)
    assert svg.draw(data) == "cannot be drawn within bounds"


def test_a_drawing_that_takes_too_long_ends_only_itself():
    body = '<filter id="f"><feTurbulence numOctaves="100000" baseFrequency="0.1"/></filter>'
    body += '<rect width="100%" height="100%" filter="url(#f)"/>' * 200
    drawing = svg.sanitise(document(body, 'viewBox="0 0 2000 2000"'), max_pixels=4_000_000)
    assert isinstance(drawing, svg.Drawing)
    assert svg.draw(drawing.content, cpu_s=1) == "cannot be drawn within bounds"


def test_refuses_what_the_drawing_program_refuses():
    nested = '<g opacity="0.5">' * 90 + RECTANGLE + "</g>" * 90
    assert "cannot be drawn" in refusal(document(nested, 'viewBox="0 0 2000 2000"'))


def test_drawing_reads_no_file_and_no_variable_of_ours(tmp_path):
    picture = tmp_path / "secret.png"
    Image.new("RGB", (200, 100), "red").save(picture)
    body = (
        f'<image href="{picture}" width="200" height="100"/>'
        f'<image href="file://{picture}" width="200" height="100"/>'
        '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" parse="text" href="/etc/passwd"/>'
    )
    drawn = svg.draw(document(body))  # as if the sanitiser had let it pass
    assert isinstance(drawn, Renditions)
    assert Image.open(io.BytesIO(drawn.preview)).getextrema()[3] == (0, 0)
