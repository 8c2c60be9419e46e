# Doxygen sees the headers through this filter: it makes documentation comments out of the plain ones.
#   - a comment before a declaration, or after one on its line, documents it
#   - "/* ---- title ---- */" opens a group of functions of that name
#   - " *   name   text" becomes an item of a list, "Errors:" a paragraph
#   - a declaration without a comment of its own refers to the one before it

# The first line: "/* base.h - what it is".
NR == 1 && match($0, /^\/\* [a-z]+\.h - /) {
    name = $2
    sub(/^\/\* [a-z]+\.h - /, "")
    print "/** @file " name
    print " * @brief " $0
    in_comment = !/\*\//
    next
}

/^\/\* ---- .* -+ \*\/$/ {
    title = $0
    sub(/^\/\* ---- /, "", title)
    sub(/ -+ \*\/$/, "", title)
    if (group)
        print "/** @} */"
    print "/** @name " title
    print " * @{ */"
    group = 1
    described = ""
    next
}

/^#ifdef __cplusplus/ && group {
    print "/** @} */"
    group = 0
}

# Lines of a comment.
in_comment || /^ *\/\* / {
    if (!in_comment) {
        sub(/\/\* /, "/** ")
        commented = 1
        place = "text"
    }
    in_comment = !/\*\//
    if (match($0, /^ \*   [a-z_]+(, [a-z_]+)*(  +| \[)/) && !/^ \*    /) {
        head = $0
        sub(/^ \*   /, "", head)
        text = head
        sub(/  +.*$/, "", head)
        sub(/^[a-z_, ]*[a-z_]  +/, "", text)
        $0 = " * - `" head "`: " text
        place = "list"
    } else if (/^ \*   - /) {
        place = "list"
    } else if (/^ \* ? ?[^ ]/) {
        if (place != "text") # else Markdown would take it for a part of the item or code before
            print " *"
        place = "text"
    } else if (/^ \*    / && place == "text") {
        print " *"
        place = "code"
    } else if (/^ \*$/) {
        place = "text"
    }
    if ((position = index($0, "Errors: ")) > 0) {
        before = substr($0, 1, position - 1)
        if (before !~ /^ \* *$/)
            print before
        print " *"
        $0 = " * **Errors:** " substr($0, position + 8)
    }
    print
    next
}

# A function that shares the comment of the one before.
/^SD_API / {
    name = $0
    sub(/\(.*/, "", name)
    sub(/^.*[ *]/, "", name)
    if (commented)
        described = name
    else if (described != "")
        print "/** Described with " described "(). */"
    commented = 0
    print
    next
}

# A comment behind code.
/[^ ].*\/\*/ {
    sub(/\/\* /, "/**< ")
    in_comment = !/\*\//
    commented = 0
    print
    next
}

/^typedef/ {
    commented = 0
}

{ print }
