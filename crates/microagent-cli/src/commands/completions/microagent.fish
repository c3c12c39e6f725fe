# Completion of microagent for fish. The program itself says what fits.
function __microagent_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    # The last word ends at the cursor.
    set -l last (commandline --current-token --cut-at-cursor)
    command $words[1] __complete -- $words "$last" 2>/dev/null
end
complete --command microagent --no-files --arguments '(__microagent_complete)'
