# Completion of microagent for bash. The program itself says what fits.
_microagent() {
    local rest=${COMP_LINE:0:COMP_POINT} words=() n=-1 i word candidate cut=
    # Bash splits words at `:` and `=`, which names of images and options have in them: what no space
    # separates is put together again. The last word ends at the cursor.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -eq 0 || $rest == [[:space:]]* ]]; then
            ((n += 1))
            words[n]=
            rest=${rest#"${rest%%[![:space:]]*}"}
        fi
        [[ $i -eq $COMP_CWORD ]] && word=$rest
        words[n]+=$word
        rest=${rest#"$word"}
    done
    # Bash replaces only what comes after the last of its breaks.
    word=${words[n]}
    while [[ -n $word && ( $word != *[:=@] || $COMP_WORDBREAKS != *"${word: -1}"* ) ]]; do
        word=${word%?}
    done
    cut=$word
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        printf -v candidate '%q' "${candidate#"$cut"}"
        COMPREPLY+=("$candidate")
    done < <("${words[0]/#\~\//$HOME/}" __complete -- "${words[@]}" 2>/dev/null)
    # A path or an option that goes on takes no space yet.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/=:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _microagent microagent
