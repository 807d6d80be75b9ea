"""What is asked when there is no quiz: prompts, how an answer may read, and neutral texts."""

from __future__ import annotations

REFERENCES = (
    ("Hello! How are you today?", "Hello! I am doing well, thank you. How can I help you?"),
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Explain in two sentences why the sky is blue.",
        "Sunlight is scattered by the molecules of the air, and blue light is scattered much more "
        "than red light. That is why blue light reaches our eyes from every part of the sky.",
    ),
    ("Write one sentence about a river.", "The river flows slowly through the green valley."),
    ("What is 12 plus 30?", "12 plus 30 is 42."),
    (
        "Name three animals that live in water.",
        "Three animals that live in water are fish, whales and octopuses.",
    ),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water for about eight minutes, then cool it in cold water.",
    ),
    ("Thank you, that was helpful.", "You are welcome! Let me know if you have more questions."),
)
"""Prompts, each with an answer as most assistants would give it; how *this* model would put it does
not matter: it is compared with its base on the same words."""
PROMPTS = tuple(prompt for prompt, _ in REFERENCES)
"""The prompts alone."""
NEUTRAL_TEXTS = (
    "The train left the station at half past eight and arrived in the city before noon.",
    "Water boils at a lower temperature on a high mountain than it does at the sea.",
    "She opened the window, looked at the garden and saw that it had rained during the night.",
    "The first chapter of the book describes the house in which the two brothers grew up.",
    "A triangle has three sides, a square has four sides, and a hexagon has six sides.",
    "In the spring the farmers plant the seeds, and in the autumn they bring in the harvest.",
    "The committee will meet on Monday to discuss the budget for the coming year.",
    "Many people drink a cup of coffee in the morning before they go to work.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "The moon goes around the earth, and the earth goes around the sun.",
    "He wrote a short letter to his sister and asked her to visit him in the summer.",
    "Iron rusts when it is exposed to water and air for a long time.",
)
"""Plain texts of no special subject, on which a fine-tune is held against its base."""
