cp extra-openai-models.yaml "$(dirname "$(llm logs path)")"
llm keys set latentrag --value 0123456789abcdef

llm --model demo "Who wrote the opera Fidelio?" --usage
llm --model demo "Who wrote the opera Fidelio?" --usage --no-stream
llm logs --json --count 1    # annotations, and the shares in latentrag.sources
