#compdef microagent
# Completion of microagent for zsh. The program itself says what fits.
_microagent() {
    local line value
    local -a described plain
    # The last word ends at the cursor.
    for line in "${(@f)$("${words[1]/#\~\//$HOME/}" __complete -- "${(@)words[1,CURRENT-1]}" "$PREFIX" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        [[ -n $value ]] || continue
        # A path or an option that goes on takes no space yet.
        if [[ $value == *[/=:] ]]; then
            plain+=("$value")
        elif [[ $line == *$'\t'* ]]; then
            described+=("${value//:/\\:}:${line#*$'\t'}")
        else
            described+=("${value//:/\\:}")
        fi
    done
    (( $#plain )) && compadd -S '' -- "${plain[@]}"
    (( $#described )) && _describe microagent described
    (( $#plain || $#described ))
}
if [[ $funcstack[1] == _microagent ]]; then
    _microagent "$@"
else
    compdef _microagent microagent
fi
