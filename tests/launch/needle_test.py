#!/usr/bin/env python3
"""A needle in a haystack: what becomes of a fact near the start of a long text when the cache keeps half of it.

    needle_test.py KEYLINE

A four-digit code is told at the start of a prompt of some 500 tokens and asked for at its end; the answer is forced
and the loss of its digits measured. What SmolLM2-135M-Instruct does, over three codes: the dense cache knows all
digits (at most 0.04 nats each). h2o_vnorm with half of the slots has kept what leads to the code: the first digit
costs 0.48 to 0.88 nats. last_recent has lost it: 2.0 to 3.2 nats, where a guess among ten digits costs 2.3. Of the
three digits after that h2o_vnorm has mostly lost track as well: it chose what to keep before it saw the question.

Standard library only. Exit 77: skipped, the model cannot be fetched.
"""
import json
import subprocess
import unittest

from command_line import KEYLINE, smollm2

CODES = {'Lisbon': '7421', 'Bergen': '3958', 'Kyoto': '6137'}
HAYSTACK = [
    'The harbour was quiet in the morning, and the gulls sat on the warm stones of the pier.',
    'A carpenter in the village made chairs of oak, and people came from far away to buy them.',
    'In spring the river rose over the meadows, and the children watched it from the bridge.',
    'The baker opened his shop at six, and the smell of bread went through the whole street.',
    'On the hill behind the church stood an old mill whose sails had not turned for years.',
    'The teacher told her class about whales, which cross the oceans and sing to one another.',
    'At the market one could buy apples, cheese, wool, and baskets of many sizes.',
    'When the snow melted, the road to the next town was muddy for several weeks.',
    'The clockmaker said that a good clock should be heard only when the room is silent.',
    'Two brothers kept bees at the edge of the forest and sold the honey in small glasses.',
]


def conversation(city, code):
    """Up to and including the answer, whose last four tokens are the digits."""
    fact = f'The secret code of the traveller from {city} is {code}'
    hay = [HAYSTACK[i % len(HAYSTACK)] for i in range(2, 22)]
    text = ' '.join([*HAYSTACK[:2], fact + '.', *hay])
    return (
        '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'
        '<|im_start|>user\nPlease read the following text carefully and remember the important fact in it.\n\n'
        f'{text}\n\nQuestion: What is the secret code of the traveller from {city}? Answer with the number.<|im_end|>\n'
        f'<|im_start|>assistant\n{fact}'
    )


class Needle(unittest.TestCase):
    def losses(self, text, *cache):
        """(of the four digits, tokens)"""
        # The answer is fed token by token, as if it had been generated.
        command = [KEYLINE, 'score', '--model', MODEL, '--text', text, '--decode-tail', '20', '--json', *cache]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        sequence = json.loads(done.stdout)['sequences'][0]
        return [-x for x in sequence['logprobs'][-4:]], len(sequence['token_ids'])

    def test_half_a_cache_keeps_what_leads_to_the_fact_only_if_it_chooses(self):
        for city, code in CODES.items():
            with self.subTest(city=city):
                text = conversation(city, code)
                dense, tokens = self.losses(text, '--kv-policy', 'dense')
                half = tokens // 2
                small = ['--kv-cache-length', str(half), '--kv-sinks', '4', '--kv-chunk', '16']
                h2o, _ = self.losses(text, '--kv-policy', 'h2o_vnorm', '--kv-normalize-scores',
                                     '--kv-grace', str(half // 4), *small)
                recent, _ = self.losses(text, '--kv-policy', 'last_recent', *small)
                for name, row in (('dense', dense), ('h2o_vnorm', h2o), ('last_recent', recent)):
                    print(f'{city:8} {tokens} tokens  {name:12}', ' '.join(f'{x:.2f}' for x in row), flush=True)
                self.assertLess(max(dense), 0.2)
                self.assertLess(h2o[0], 1.2)
                self.assertGreater(recent[0], 1.6)
                self.assertLess(sum(h2o) + 1, sum(recent))


if __name__ == '__main__':
    MODEL = smollm2()
    unittest.main()
