# A manual page (section 5) of a sample configuration: awk -v name=agent.toml -v title='…' -f page.awk agent.toml
# Comments are its text; keys, with a # before those that are not set, stand below what is said of them.
function flush() { if (text != "") { print ".PP"; print text; text = "" } }
function roff(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); if (s ~ /^[.']/) s = "\\&" s; return s }
BEGIN {
    printf ".TH %s 5 \"\" \"Mezcal\" \"Configuration of Mezcal\"\n.SH NAME\n%s \\- %s\n.SH DESCRIPTION\n", toupper(name), roff(name), title
}
/^# / { text = text (text == "" ? "" : "\n") roff(substr($0, 3)); next }
/^#?[A-Za-z"\[]/ {
    if (!keys) { keys = 1; said = text; text = ""; print ".SH KEYS"; text = said }
    sub(/^#/, "")
    print ".TP"; print ".B \"" quotes(roff($0)) "\""; if (text != "") print text; text = ""; next
}
/^$/ { if (!keys) flush() }
function quotes(s) { gsub(/"/, "\\(dq", s); return s }
END {
    flush()
    sub(/^mezcal-/, "", name)
    print ".SH FILES"; print ".I " roff("/usr/share/doc/" package "/examples/" name); print ".PP"; print "The same as a file to begin with."
}
