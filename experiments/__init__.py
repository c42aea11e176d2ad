"""One script a question: each reads like the paragraph of the paper that it would become."""
