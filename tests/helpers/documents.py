"""Files as people have them, made small: PDF, DOCX."""

import io
import zipfile

from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, NumberObject, StreamObject

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def pdf_writer(*pages):
    """A PDF with the lines of each page; a page without lines is blank."""
    writer = PdfWriter()
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(name) for key, name in names.items()})
    fonts = DictionaryObject({NameObject("/F1"): font})
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        shown = "".join(f"({line}) Tj T*\n" for line in lines)
        stream = StreamObject()
        stream.set_data(f"BT /F1 12 Tf 14 TL 72 720 Td\n{shown}ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    return writer


def pdf(*pages, **encryption):
    """The bytes of a PDF with the lines of each page, encrypted as `PdfWriter.encrypt` does."""
    writer, file = pdf_writer(*pages), io.BytesIO()
    if encryption:
        writer.encrypt(**encryption)
    writer.write(file)
    return file.getvalue()


def archive(parts):
    """The bytes of a ZIP archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in parts.items():
            out.writestr(name, content)
    return file.getvalue()


def docx(body, before="", relationships="", **more):
    """The bytes of a Word file.

    Args:
        body: the XML in its body.
        before: what stands before the XML of its document, such as a DTD.
        relationships: the XML of what it links to.
        more: parts by name.
    """
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    types = (
        f'<Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>'
    )
    start = f'<Relationships xmlns="{PACKAGE}/relationships">'
    main = f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
    document = f'<w:document xmlns:w="{WORD}" xmlns:r="{OFFICE}"><w:body>{body}</w:body>'
    return archive(
        {
            "[Content_Types].xml": types,
            "_rels/.rels": f"{start}{main}</Relationships>",
            "word/document.xml": f"{before}{document}</w:document>",
            "word/_rels/document.xml.rels": f"{start}{relationships}</Relationships>",
            **more,
        }
    )


def paragraph(text, style=""):
    """The XML of one paragraph of a Word file."""
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


def pdf_with_picture(lines):
    """The bytes of a PDF with a page of lines and one that is a picture."""
    writer, file = pdf_writer(lines, []), io.BytesIO()
    picture = StreamObject()
    picture.set_data(b"\0")
    names = {"/Type": "/XObject", "/Subtype": "/Image", "/ColorSpace": "/DeviceGray"}
    picture.update({NameObject(key): NameObject(name) for key, name in names.items()})
    for key in ("/Width", "/Height"):
        picture[NameObject(key)] = NumberObject(1)
    picture[NameObject("/BitsPerComponent")] = NumberObject(8)
    pictures = DictionaryObject({NameObject("/P"): writer._add_object(picture)})
    writer.pages[1]["/Resources"][NameObject("/XObject")] = pictures
    writer.write(file)
    return file.getvalue()
