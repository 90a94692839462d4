"""Score streams of minutes, minute by minute: do words, place in the text, face and voice drift?"""
